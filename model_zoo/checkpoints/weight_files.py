"""The weight files of one part of a diffusers folder: their form, and whether they fit its configuration."""

import re
import shlex
from collections.abc import Iterator
from math import prod
from pathlib import Path

from safetensors import safe_open
from torch import nn

from randcond.model_zoo.checkpoints.diffusers_folder import read_object

_IMPORTED = {"fp32", "fp16", "bf16"}  # variants that can be imported
SAFE_NAME = {True: "diffusion_pytorch_model", False: "model"}  # of diffusers' networks, and of transformers'
_OTHERS = (".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx")
_OLD_ATTENTION = {  # names in older autoencoders; diffusers renames them when it loads
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}


def weight_files(part: Path) -> list[Path]:
    """Returns the safetensors files from which the libraries load a part: one, or the shards of an index.

    Empty if there are none without a variant (fp16, non_ema). Does not look whether shards exist.
    """
    for name in SAFE_NAME.values():
        if (path := part / f"{name}.safetensors").is_file():
            return [path]
        if (index := part / f"{name}.safetensors.index.json").is_file():
            weights = read_object(index).get("weight_map", {})
            return [part / shard for shard in sorted(set(map(str, weights.values())))]
    return []


def weight_faults(part: Path, network: nn.Module) -> Iterator[str]:
    """Yields why a part's weights can't be loaded. Reads the files' headers only.

    `network`: the part as its configuration describes it, on the meta device.
    """
    files = weight_files(part)
    if not files:
        yield _without_safetensors(part)
        return
    if missing := [path.name for path in files if not path.is_file()]:
        yield f"{part}: {', '.join(missing)} of the index is missing; download or copy it again"
        return
    found: dict[str, int] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                found[_plain_name(name)] = prod(file.get_slice(name).get_shape())
    # Position ids, which older files hold and newer ones don't, and tensors that are stored under another name.
    derived = {name for name, _ in network.named_buffers()} | {*(getattr(network, "_tied_weights_keys", None) or ())}
    wanted = {name: value.numel() for name, value in network.state_dict().items() if name not in derived}
    absent = [name for name in wanted if _plain_name(name) not in found]
    other = [name for name, size in wanted.items() if found.get(_plain_name(name), size) != size]
    if absent:
        yield f"{part}: {len(absent)} of {len(wanted)} tensors are missing, first {absent[0]}; see config.json"
    if other:
        yield (
            f"{part}: {len(other)} of {len(wanted)} tensors have another size than config.json says, first {other[0]}"
        )


def _plain_name(name: str) -> str:
    name = name.removeprefix("text_model.")
    for old, new in _OLD_ATTENTION.items():
        name = name.replace(old, new)
    return name


def _without_safetensors(part: Path) -> str:
    names = sorted(path.name for path in part.glob("*") if path.is_file())
    matches = (re.search(r"\.(\w+)(?:-\d+-of-\d+)?\.safetensors", name) for name in names)
    variants = sorted({match[1] for match in matches if match})
    others = [name for name in names if name.endswith(_OTHERS)]
    command = f"`randcond teacher import {shlex.quote(str(part.parent))} NEW` makes a folder that can be used"
    can_import = _IMPORTED & set(variants) or any(name.endswith(".bin") for name in others)
    way_out = command if can_import else "get it as safetensors"
    if variants:
        return f"{part}: has its weights only in the variant {', '.join(variants)}; {way_out}"
    if others:
        return f"{part}: has no safetensors, only {', '.join(others)}; {way_out}"
    return f"{part}: has no weights (no .safetensors file); download or copy it again"
