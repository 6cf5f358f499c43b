"""What is read from an image in the one pass over it: Inception and DINOv2 features, CLIP cosines, the digits' judge.

In: images uint8 [n, 3, H, W] as the protocol gives them, and their captions. Out: rows by name, fp32 [n, ...].
Every extractor is a library's own network, in eval mode and fp32.
"""

import io
import os
from collections.abc import Iterable
from contextlib import redirect_stderr
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from randcond.data.digits.judge import EMBEDDED_JUDGE, Judge
from randcond.eval.images.extractor import Extractor, Rows
from randcond.eval.images.protocol_images import to_picture
from randcond.eval.scores.network_weights import (
    TRANSFORMERS_FILES,
    first_line,
    load_network,
    model_folder,
    read_tensors,
    settings_fingerprint,
    tensors_fingerprint,
)
from randcond.launch.config.sections import Eval
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import sha256
from randcond.model_zoo.fingerprint import folder_fingerprint


def load_extractors(names: Iterable[str], ev: Eval, device: torch.device | str) -> dict[str, Extractor]:
    """The named extractors (inception, clip, dino, judge) with the weights that the experiment names.

    Raises UserError naming the key and the file whose weights are not there or don't load.
    """
    makers = {"inception": _inception, "clip": _clip, "dino": _dino, "judge": _judge}
    return {name: makers[name](ev, device) for name in names}


def _inception(ev: Eval, device: torch.device | str) -> Extractor:
    """TensorFlow's Inception v3: rows inception [n, 2048], logits [n, 1008] (no bias).

    Both by torch-fidelity's port; with `eval.fid: pytorch-fid` the features are that tool's, which scales and resizes
    images otherwise (the paper's published statistics are its).
    """
    path = Path(ev.inception)
    tensors = read_tensors(path, "eval.inception")
    try:
        network = _fidelity_port(tensors).to(device)
        other = _pytorch_fid_port(tensors).to(device) if ev.fid == "pytorch-fid" else None
    except RuntimeError as error:
        raise UserError(f"eval.inception: {path}: not TF Inception v3's weights ({first_line(error)})") from None

    @torch.no_grad()
    def read(images: Tensor, captions: list[str]) -> Rows:
        pixels = images.to(device)
        features, logits = network(pixels)
        if other is not None:
            features = other(pixels.float() / 255)[0].flatten(1)
        return {"inception": features.float().cpu(), "logits": logits.float().cpu()}

    return Extractor(inception_identity(ev), 2048, read)


def inception_identity(ev: Eval) -> str:
    """Which port with which weights reads Inception's features: known without loading them."""
    port = "inception-v3-compat" + (", features by pytorch-fid" if ev.fid == "pytorch-fid" else "")
    return f"{port} {sha256(Path(ev.inception))[:16]}"


def _fidelity_port(tensors: dict[str, Tensor]) -> nn.Module:
    """torch-fidelity's network; raises RuntimeError when the weights are of another one."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    held = io.BytesIO()  # its constructor unpickles a file: it gets tensors that were read as nothing but tensors
    torch.save(tensors, held)
    held.seek(0)
    features = ["2048", "logits_unbiased"]
    return FeatureExtractorInceptionV3("inception-v3-compat", features, feature_extractor_weights_path=held)


def _pytorch_fid_port(tensors: dict[str, Tensor]) -> nn.Module:
    """pytorch-fid's network, which takes images in [0, 1]; raises RuntimeError when the weights are of another one."""
    from pytorch_fid.inception import FID_WEIGHTS_URL, InceptionV3

    before = os.environ.get("TORCH_HOME")
    with TemporaryDirectory() as folder:  # it knows weights by their address only, and where torch.hub keeps them
        kept = Path(folder) / "hub" / "checkpoints" / Path(FID_WEIGHTS_URL).name
        kept.parent.mkdir(parents=True)
        torch.save(tensors, kept)
        os.environ["TORCH_HOME"] = folder
        try:
            return InceptionV3([InceptionV3.BLOCK_INDEX_BY_DIM[2048]]).eval()
        finally:
            os.environ.pop("TORCH_HOME")
            if before is not None:
                os.environ["TORCH_HOME"] = before


def _clip(ev: Eval, device: torch.device | str) -> Extractor:
    """open_clip's image-text cosine: row clip [n]."""
    import open_clip

    local = ev.clip.startswith("local-dir:")
    try:
        with redirect_stderr(io.StringIO()):
            model, preprocess = open_clip.create_model_from_pretrained(
                ev.clip, pretrained=None if local else ev.clip_weights, precision="fp32", device=device
            )
        tokenize = open_clip.get_tokenizer(ev.clip)
    except (RuntimeError, OSError, ValueError, SafetensorError) as error:
        where = ev.clip if local else f"{ev.clip}, eval.clip_weights: {ev.clip_weights}"
        raise UserError(f"eval.clip: {where}: does not load ({first_line(error)})") from None
    model.eval().requires_grad_(False)

    @torch.no_grad()
    def read(images: Tensor, captions: list[str]) -> Rows:
        pixels = torch.stack([preprocess(to_picture(image)) for image in images])
        seen = model.encode_image(pixels.to(device), normalize=True)  # [n, d]
        said = model.encode_text(tokenize(captions).to(device), normalize=True)
        return {"clip": (seen * said).sum(dim=1).float().cpu()}

    settings = [settings_fingerprint(Path(ev.clip.removeprefix("local-dir:")))] if local else [ev.clip]
    if not local and not Path(ev.clip_weights).is_file():  # a published name: it says how images are prepared, too
        settings.append(ev.clip_weights)
    return Extractor(" ".join(["open_clip", *settings, tensors_fingerprint(model)]), 0, read)


def _dino(ev: Eval, device: torch.device | str) -> Extractor:
    """DINOv2's normalised class token of the image at 224 (Pillow, bicubic): row dino [n, d]."""
    from transformers import AutoModel

    try:
        folder = model_folder(ev.dino, TRANSFORMERS_FILES)
        model, _ = load_network(AutoModel, None, folder, ("dinov2", "dinov2_with_registers"))
    except UserError as error:
        raise UserError(f"eval.dino: {error}") from None
    model.to(device).eval().requires_grad_(False)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # ImageNet's

    @torch.no_grad()
    def read(images: Tensor, captions: list[str]) -> Rows:
        resized = [np.array(to_picture(image).resize((224, 224))) for image in images]
        pixels = (torch.from_numpy(np.stack(resized)) / 255 - mean) / std  # [n, 224, 224, 3]
        return {"dino": model(pixels.permute(0, 3, 1, 2).to(device)).pooler_output.float().cpu()}

    return Extractor(
        f"dinov2 {settings_fingerprint(folder)} {tensors_fingerprint(model)}", model.config.hidden_size, read
    )


def _judge(ev: Eval, device: torch.device | str) -> Extractor:
    """The digits world's classifier: rows judge_read [n, 3] (digit, colour, background), judge_features [n, 64]."""
    judge = Judge.load()

    def read(images: Tensor, captions: list[str]) -> Rows:
        labels, features = judge.classify(images.float() / 127.5 - 1)
        return {"judge_read": labels.float(), "judge_features": features}

    return Extractor(f"judge {folder_fingerprint(EMBEDDED_JUDGE)}", 0, read)
