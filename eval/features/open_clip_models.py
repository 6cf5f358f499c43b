"""open_clip's models: the cosine of CLIP, and HPSv2.1, a CLIP that was trained to prefer what people prefer."""

import io
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from randcond.eval.features.network_weights import (
    find_weights,
    first_line,
    model_folder,
    read_tensors,
    settings_fingerprint,
    tensors_fingerprint,
)
from randcond.eval.images.extractor import Extractor, Features
from randcond.eval.images.protocol_images import to_picture
from randcond.launch.config.sections import Eval
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import read_json
from randcond.model_zoo.checkpoints.hub_files import hub_failure, is_of_hub

LOCAL = "local-dir:"  # open_clip's prefix of a folder with a model of one's own
HPS_MODEL = "ViT-H-14"  # what HPSv2 was trained from


CLIP_FILES = ("open_clip_config.json", "open_clip_model.safetensors")


@dataclass(frozen=True)
class OpenClip:
    """A model of open_clip in eval mode and fp32, with its preprocessing and its tokenizer."""

    model: Any
    preprocess: Callable[[Image.Image], Tensor]  # -> [3, h, w]
    tokenize: Callable[[list[str]], Tensor]  # -> [n, tokens]
    device: torch.device | str

    def pixels(self, images: Tensor) -> Tensor:
        """Returns what the model reads [n, 3, h, w] of images uint8 [n, 3, H, W]."""
        return torch.stack([self.preprocess(to_picture(image)) for image in images]).to(self.device)

    @torch.no_grad()
    def embeddings(self, images: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Returns the normalised embeddings [n, d] of images uint8 [n, 3, H, W] and of n texts."""
        tokens = self.tokenize(texts).to(self.device)
        encoded = self.model.encode_image(self.pixels(images), normalize=True)
        return encoded, self.model.encode_text(tokens, normalize=True)

    def cosines(self, images: Tensor, texts: list[str]) -> Tensor:
        """Returns the cosine between each image and its text, fp32 [n]. images: uint8 [n, 3, H, W]."""
        image_features, text_features = self.embeddings(images, texts)
        return (image_features * text_features).sum(dim=1).float().cpu()


def load_clip(ev: Eval, device: torch.device | str) -> Extractor:
    """open_clip's cosine between image and caption: feature clip [n]."""
    local = ev.clip.startswith(LOCAL)
    where = ev.clip if local else f"{ev.clip}, eval.clip_weights: {ev.clip_weights}"
    clip = load_open_clip(f"eval.clip: {where}", ev.clip, None if local else ev.clip_weights, device)

    def read(images: Tensor, captions: list[str]) -> Features:
        return {"clip": clip.cosines(images, captions)}

    settings = [settings_fingerprint(Path(ev.clip.removeprefix(LOCAL)))] if local else [ev.clip]
    if not local and not Path(ev.clip_weights).is_file():  # the tag of published weights also decides the preprocessing
        settings.append(ev.clip_weights)
    return Extractor(" ".join(["open_clip", *settings, tensors_fingerprint(clip.model)]), 0, read)


def load_hps(ev: Eval, device: torch.device | str) -> Extractor:
    """Human Preference Score v2 (arXiv:2306.09341): the cosine of its CLIP, as its authors compute it: feature hps [n].

    The weights are those of HPSv2's own file, or of imscore's, whose tensors are named `model.*`.
    """
    local = ev.hps.startswith(LOCAL)
    clip = load_open_clip(f"eval.hps: {ev.hps}", ev.hps if local else HPS_MODEL, None, device)
    if not local:
        _fill(clip.model, find_weights(ev.hps, "eval.hps"))

    def read(images: Tensor, captions: list[str]) -> Features:
        return {"hps": clip.cosines(images, captions)}

    settings = settings_fingerprint(Path(ev.hps.removeprefix(LOCAL))) if local else HPS_MODEL
    return Extractor(f"hps {settings} {tensors_fingerprint(clip.model)}", 0, read)


def _fill(model: Any, path: Path) -> None:
    """Fills a model with the tensors of a file. Raises UserError if they are another network's."""
    stored: Any = read_tensors(path, "eval.hps")
    tensors = stored.get("state_dict", stored)  # HPSv2's own file is a training's checkpoint
    try:
        model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise UserError(f"eval.hps: {path}: does not hold the weights of {HPS_MODEL} ({first_line(error)})") from None


def load_cmmd_clip(ev: Eval, device: torch.device | str) -> Extractor:
    """The image embedding of CMMD's CLIP, of the image resized by Pillow (bicubic): feature cmmd [n, d]."""
    try:
        folder = model_folder(ev.cmmd, CLIP_FILES)
    except UserError as error:
        raise UserError(f"eval.cmmd: {error}") from None
    clip = load_open_clip(f"eval.cmmd: {ev.cmmd}", f"{LOCAL}{folder}", None, device)

    @torch.no_grad()
    def read(images: Tensor, captions: list[str]) -> Features:
        return {"cmmd": clip.model.encode_image(clip.pixels(images)).float().cpu()}

    width = int(read_json(folder / CLIP_FILES[0])["model_cfg"]["embed_dim"])
    return Extractor(f"cmmd {settings_fingerprint(folder)} {tensors_fingerprint(clip.model)}", width, read)


def load_open_clip(where: str, name: str, weights: str | None, device: torch.device | str) -> OpenClip:
    """Loads an open_clip model.

    where: what the user wrote, with which errors begin. name: a model of open_clip's, or `local-dir:FOLDER` with its
    own weights. weights: a tag or a file; None: random ones, but for `local-dir:`.
    Raises UserError if it can't be loaded, and ConnectionError if the hub is out of reach.
    """
    import open_clip

    create: Any = open_clip.create_model_and_transforms
    if weights is not None or name.startswith(LOCAL):
        create = open_clip.create_model_from_pretrained  # which insists on weights
    try:
        with redirect_stderr(io.StringIO()):
            model, *_, preprocess = create(name, pretrained=weights, precision="fp32", device=device)
        tokenize = open_clip.get_tokenizer(name)
    except Exception as error:
        if is_of_hub(error):
            raise hub_failure(where, error) from None
        if not isinstance(error, RuntimeError | OSError | ValueError | SafetensorError):
            raise
        raise UserError(f"{where}: can't be loaded as a model of open_clip ({first_line(error)})") from None
    model.eval().requires_grad_(False)
    return OpenClip(model, preprocess, tokenize, device)
