"""TensorFlow's Inception v3, by the ports of torch-fidelity or pytorch-fid: features of FID and KID, logits of IS."""

import io
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from randcond.eval.features.network_weights import first_line, read_tensors
from randcond.eval.images.extractor import Extractor, Features
from randcond.launch.config.sections import Eval
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import sha256


def load_inception(ev: Eval, device: torch.device | str) -> Extractor:
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
