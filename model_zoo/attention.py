"""Chooses each attention's backend, SDPA or xformers, once: by a self-test, and for "auto" by a race.

xformers has no operator for head dims that 8 does not divide (C-Small: 28, C-Micro: 20), none on a CPU, and none at
all where its kernels were built for another torch: such modules keep SDPA, and the log says so.
"""

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, XFormersAttnProcessor
from diffusers.utils import is_xformers_available
from torch import Tensor, nn

from randcond.model_zoo.condition import blank_forward
from randcond.model_zoo.students import plain_config

PROCESSORS = {"sdpa": AttnProcessor2_0, "xformers": XFormersAttnProcessor}
ROUNDS = 5  # of the race


class AttentionShape(NamedTuple):
    """What decides which kernel can run, and which is faster."""

    heads: int
    head_dim: int
    queries: int  # tokens
    keys: int  # tokens; the caption's in cross-attention


@dataclass(frozen=True)
class Choice:
    """The backend of all attentions of one shape, and why."""

    shape: AttentionShape
    modules: int
    backend: str
    why: str


def choice_from(stored: dict[str, Any]) -> Choice:
    """A choice as it was written to JSON."""
    return Choice(**{**stored, "shape": AttentionShape(*stored["shape"])})


def attention_shapes(unet: UNet2DConditionModel, tokens: int) -> dict[str, AttentionShape]:
    """Shape of every attention module by name, from a forward of shapes only (meta device)."""
    shapes: dict[str, AttentionShape] = {}

    def record(name: str) -> Any:
        def hook(module: Attention, inputs: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
            hidden = inputs[0]
            text = kwargs.get("encoder_hidden_states")
            keys = hidden.shape[1] if text is None else text.shape[1]
            shapes[name] = AttentionShape(module.heads, module.inner_dim // module.heads, hidden.shape[1], keys)

        return hook

    with torch.device("meta"), torch.no_grad():
        shadow = type(unet).from_config(plain_config(unet.config))
        for name, module in shadow.named_modules():
            if isinstance(module, Attention):
                module.register_forward_pre_hook(record(name), with_kwargs=True)
        blank_forward(shadow, tokens=tokens)
    return shapes


def choose_attention(
    unet: UNet2DConditionModel,
    wanted: str,
    dtype: torch.dtype,
    device: torch.device,
    batch: int,
    trains: bool,
    tokens: int = 77,
) -> list[Choice]:
    """Chooses a backend per attention shape and sets nothing: one rank chooses for all.

    wanted: "sdpa", "xformers" (where its self-test passes) or "auto" (the faster; no race on a CPU). `trains` adds
    the backward pass to test and race.
    """
    by_shape: dict[AttentionShape, int] = defaultdict(int)
    for shape in attention_shapes(unet, tokens).values():
        by_shape[shape] += 1
    return [
        Choice(shape, modules, *_choose(shape, wanted, dtype, device, batch, trains))
        for shape, modules in by_shape.items()
    ]


def set_attention(unet: UNet2DConditionModel, choices: list[Choice], tokens: int = 77) -> None:
    """Sets every attention's processor to what was chosen for its shape."""
    modules = dict(unet.named_modules())
    backends = {choice.shape: choice.backend for choice in choices}
    for name, shape in attention_shapes(unet, tokens).items():
        modules[name].set_processor(PROCESSORS[backends[shape]]())


def _choose(
    shape: AttentionShape, wanted: str, dtype: torch.dtype, device: torch.device, batch: int, trains: bool
) -> tuple[str, str]:
    if wanted == "sdpa":
        return "sdpa", "asked for"
    if wanted == "auto" and device.type == "cpu":
        return "sdpa", "no xformers operator runs on a CPU"
    if not is_xformers_available():
        return "sdpa", "xformers is not installed: pip install 'randcond[xformers]'"
    if shape.head_dim % 8:
        return "sdpa", f"xformers needs head dims divisible by 8, this one is {shape.head_dim}"
    try:
        theirs = self_test("xformers", shape, dtype, device, batch, trains)
    except Exception as error:  # whatever a foreign kernel may raise: SDPA always works
        return "sdpa", f"xformers failed its self-test: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
    if wanted == "xformers":
        return "xformers", "asked for"
    ours = self_test("sdpa", shape, dtype, device, batch, trains)
    return ("xformers" if theirs < ours else "sdpa"), f"{1e3 * theirs:.2f} ms against SDPA's {1e3 * ours:.2f}"


def self_test(
    backend: str, shape: AttentionShape, dtype: torch.dtype, device: torch.device, batch: int, trains: bool
) -> float:
    """Seconds of one call (and its backward) at this shape, in diffusers' own attention layer.

    Raises whatever the kernel raises, and RuntimeError when it disagrees with SDPA by more than rounding.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        width = shape.heads * shape.head_dim
        layer = Attention(width, heads=shape.heads, dim_head=shape.head_dim).to(device, dtype)
        hidden = torch.randn(batch, shape.queries, width, device=device, dtype=dtype)
        text = torch.randn(batch, shape.keys, width, device=device, dtype=dtype)
    layer.set_processor(PROCESSORS[backend]())
    seconds = _race(layer, hidden, text, trains)
    with torch.no_grad():
        drawn = layer(hidden[:2], text[:2]).float()
        layer.set_processor(AttnProcessor2_0())
        expected = layer(hidden[:2], text[:2]).float()
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-3
    worst = (drawn - expected).abs().max() / expected.abs().max()
    if not worst < tolerance:
        raise RuntimeError(f"differs from SDPA by {worst:.1e} of the largest value")
    return seconds


def _race(layer: nn.Module, hidden: Tensor, text: Tensor, trains: bool) -> float:
    times = []
    for _ in range(ROUNDS):
        if hidden.is_cuda:
            torch.cuda.synchronize(hidden.device)
        began = time.perf_counter()
        with torch.set_grad_enabled(trains):
            out = layer(hidden, text)
            if trains:
                out.sum().backward()
        if hidden.is_cuda:
            torch.cuda.synchronize(hidden.device)
        times.append(time.perf_counter() - began)
    return min(times)


def summary(choices: list[Choice]) -> str:
    """One line for the log: "sdpa 20, xformers 12 modules", and why where it was not asked for."""
    counts: dict[str, int] = defaultdict(int)
    reasons: dict[str, None] = {}
    for choice in choices:
        counts[choice.backend] += choice.modules
        if choice.why != "asked for":
            reasons[f"head dim {choice.shape.head_dim}, {choice.shape.queries} tokens: {choice.why}"] = None
    if len({choice.why for choice in choices}) == 1:
        reasons = {} if choices[0].why == "asked for" else {choices[0].why: None}
    line = ", ".join(f"{backend} {count}" for backend, count in sorted(counts.items())) + " modules"
    return line + (f" ({'; '.join(reasons)})" if reasons else "")
