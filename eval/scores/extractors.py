"""The extractors: Inception and DINOv2 features, CLIP cosines, and the judge of the digits world.

In: images uint8 [n, 3, H, W] as the protocol gives them, and their captions. Out: features by name, fp32 [n, ...].
Every network comes from a published library and runs in eval mode and fp32. The judge is the exception: it is ours.
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
from randcond.eval.images.extractor import Extractor, Features
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
from randcond.model_zoo.checkpoints.fingerprint import folder_fingerprint
from randcond.model_zoo.checkpoints.hub_files import hub_failure, is_of_hub


def load_extractors(names: Iterable[str], ev: Eval, device: torch.device | str) -> dict[str, Extractor]:
    """Loads the named extractors (inception, clip, dino, judge) with the weights of the `eval:` section.

    Raises UserError naming the key and the file if weights are missing or can't be loaded.
    """
    loaders = {"inception": _inception, "clip": _clip, "dino": _dino, "judge": _judge}
    return {name: loaders[name](ev, device) for name in names}


def _inception(ev: Eval, device: torch.device | str) -> Extractor:
    """TensorFlow's Inception v3: features inception [n, 2048] and logits [n, 1008] (without bias).

    Both come from torch-fidelity's port of the network. With `eval.fid: pytorch-fid`, inception comes from
    pytorch-fid's port, which scales and resizes images in another way. The published statistics that the paper uses
    were made with pytorch-fid.
    """
    path = Path(ev.inception)
    tensors = read_tensors(path, "eval.inception")
    try:
        network = _fidelity_port(tensors).to(device)
        pytorch_fid = _pytorch_fid_port(tensors).to(device) if ev.fid == "pytorch-fid" else None
    except RuntimeError as error:
        raise UserError(
            f"eval.inception: {path}: does not hold the weights of TF Inception v3 ({first_line(error)})"
        ) from None

    @torch.no_grad()
    def read(images: Tensor, captions: list[str]) -> Features:
        pixels = images.to(device)
        features, logits = network(pixels)
        if pytorch_fid is not None:
            features = pytorch_fid(pixels.float() / 255)[0].flatten(1)
        return {"inception": features.float().cpu(), "logits": logits.float().cpu()}

    return Extractor(inception_identity(ev), 2048, read)


def inception_identity(ev: Eval) -> str:
    """Returns the identity of the Inception extractor (port and hash of the weights) without loading it."""
    port = "inception-v3-compat" + (", features by pytorch-fid" if ev.fid == "pytorch-fid" else "")
    return f"{port} {sha256(Path(ev.inception))[:16]}"


def _fidelity_port(tensors: dict[str, Tensor]) -> nn.Module:
    """torch-fidelity's network; raises RuntimeError if the weights belong to another network."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # Its constructor unpickles a file, which could run code. It gets a copy of tensors that were loaded safely.
    file = io.BytesIO()
    torch.save(tensors, file)
    file.seek(0)
    features = ["2048", "logits_unbiased"]
    return FeatureExtractorInceptionV3("inception-v3-compat", features, feature_extractor_weights_path=file)


def _pytorch_fid_port(tensors: dict[str, Tensor]) -> nn.Module:
    """pytorch-fid's network, for images in [0, 1]; raises RuntimeError if the weights belong to another network."""
    from pytorch_fid.inception import FID_WEIGHTS_URL, InceptionV3

    before = os.environ.get("TORCH_HOME")
    with TemporaryDirectory() as folder:  # it loads weights by their URL only, so they are put into torch.hub's cache
        cached = Path(folder) / "hub" / "checkpoints" / Path(FID_WEIGHTS_URL).name
        cached.parent.mkdir(parents=True)
        torch.save(tensors, cached)
        os.environ["TORCH_HOME"] = folder
        try:
            return InceptionV3([InceptionV3.BLOCK_INDEX_BY_DIM[2048]]).eval()
        finally:
            os.environ.pop("TORCH_HOME")
            if before is not None:
                os.environ["TORCH_HOME"] = before


def _clip(ev: Eval, device: torch.device | str) -> Extractor:
    """open_clip's cosine between image and caption: feature clip [n]."""
    import open_clip

    local = ev.clip.startswith("local-dir:")
    try:
        with redirect_stderr(io.StringIO()):
            model, preprocess = open_clip.create_model_from_pretrained(
                ev.clip, pretrained=None if local else ev.clip_weights, precision="fp32", device=device
            )
        tokenize = open_clip.get_tokenizer(ev.clip)
    except Exception as error:
        where = ev.clip if local else f"{ev.clip}, eval.clip_weights: {ev.clip_weights}"
        if is_of_hub(error):
            raise hub_failure(f"eval.clip: {where}", error) from None
        if not isinstance(error, RuntimeError | OSError | ValueError | SafetensorError):
            raise
        raise UserError(f"eval.clip: {where}: can't be loaded ({first_line(error)})") from None
    model.eval().requires_grad_(False)

    @torch.no_grad()
    def read(images: Tensor, captions: list[str]) -> Features:
        pixels = torch.stack([preprocess(to_picture(image)) for image in images])
        image_features = model.encode_image(pixels.to(device), normalize=True)  # [n, d]
        text_features = model.encode_text(tokenize(captions).to(device), normalize=True)  # [n, d]
        return {"clip": (image_features * text_features).sum(dim=1).float().cpu()}

    settings = [settings_fingerprint(Path(ev.clip.removeprefix("local-dir:")))] if local else [ev.clip]
    if not local and not Path(ev.clip_weights).is_file():  # the tag of published weights also decides the preprocessing
        settings.append(ev.clip_weights)
    return Extractor(" ".join(["open_clip", *settings, tensors_fingerprint(model)]), 0, read)


def _dino(ev: Eval, device: torch.device | str) -> Extractor:
    """DINOv2's normalised class token, of the image resized to 224 (Pillow, bicubic): feature dino [n, d]."""
    from transformers import AutoModel

    try:
        folder = model_folder(ev.dino, TRANSFORMERS_FILES)
        model, _ = load_network(AutoModel, None, folder, ("dinov2", "dinov2_with_registers"))
    except UserError as error:
        raise UserError(f"eval.dino: {error}") from None
    model.to(device).eval().requires_grad_(False)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # of ImageNet

    @torch.no_grad()
    def read(images: Tensor, captions: list[str]) -> Features:
        resized = [np.array(to_picture(image).resize((224, 224))) for image in images]
        pixels = (torch.from_numpy(np.stack(resized)) / 255 - mean) / std  # [n, 224, 224, 3]
        return {"dino": model(pixels.permute(0, 3, 1, 2).to(device)).pooler_output.float().cpu()}

    return Extractor(
        f"dinov2 {settings_fingerprint(folder)} {tensors_fingerprint(model)}", model.config.hidden_size, read
    )


def _judge(ev: Eval, device: torch.device | str) -> Extractor:
    """The digits world's classifier: features judge_read [n, 3] and judge_features [n, 64].

    judge_read holds the predicted class indices of digit, colour and background.
    """
    judge = Judge.load()

    def read(images: Tensor, captions: list[str]) -> Features:
        labels, features = judge.classify(images.float() / 127.5 - 1)
        return {"judge_read": labels.float(), "judge_features": features}

    return Extractor(f"judge {folder_fingerprint(EMBEDDED_JUDGE)}", 0, read)
