"""Chooses each attention's backend once: by a self-test, and for "auto" by a race of all that pass it.

Backends: SDPA with torch's own choice of kernel, SDPA held to one of its kernels (flash, cudnn, efficient), xformers.
xformers has no operator for head dims that 8 does not divide (C-Small: 28, C-Micro: 20), none on a CPU, and none at
all where its kernels were built for another torch: such modules keep SDPA, and the log says so.
"""

import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, XFormersAttnProcessor
from diffusers.utils import is_xformers_available
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from randcond.model_zoo.denoiser.condition import blank_forward
from randcond.model_zoo.denoiser.configuration import plain_config

ROUNDS = 5  # of the race
OF_SOFTMAX = {f"its gradient by {name}" for name in ("hidden states", "to_q.weight", "to_k.weight")}


class KernelProcessor(AttnProcessor2_0):
    """Attention by one of SDPA's kernels and no other."""

    def __init__(self, kernel: SDPBackend) -> None:
        super().__init__()
        self.kernel = kernel

    def __call__(self, *inputs: Any, **options: Any) -> Tensor:  # noqa: D102 (diffusers' own says it)
        with sdpa_kernel(self.kernel):
            return super().__call__(*inputs, **options)


PROCESSORS: dict[str, Callable[[], Any]] = {
    "sdpa": AttnProcessor2_0,
    "flash": partial(KernelProcessor, SDPBackend.FLASH_ATTENTION),
    "cudnn": partial(KernelProcessor, SDPBackend.CUDNN_ATTENTION),
    "efficient": partial(KernelProcessor, SDPBackend.EFFICIENT_ATTENTION),
    "xformers": XFormersAttnProcessor,
}


class AttentionShape(NamedTuple):
    """What decides which kernel can run, and which is faster."""

    heads: int
    head_dim: int
    queries: int  # tokens
    keys: int  # tokens; the caption's in cross-attention


class Use(NamedTuple):
    """Under what a network's attentions run."""

    dtype: torch.dtype
    device: torch.device
    batch: int
    trains: bool  # the backward pass is tested and raced too
    one_graph: bool = False  # the network is compiled whole


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


def choose_attention(unet: UNet2DConditionModel, wanted: str, use: Use, tokens: int = 77) -> list[Choice]:
    """Chooses a backend per attention shape and sets nothing: one rank chooses for all.

    wanted: a name in PROCESSORS (where its self-test passes) or "auto" (the fastest; no race on a CPU). "auto" leaves
    xformers out of one graph: torch.compile can't follow its own choice of an operator.
    """
    by_shape: dict[AttentionShape, int] = defaultdict(int)
    for shape in attention_shapes(unet, tokens).values():
        by_shape[shape] += 1
    return [Choice(shape, modules, *_choose(shape, wanted, use)) for shape, modules in by_shape.items()]


def set_attention(unet: UNet2DConditionModel, choices: list[Choice], tokens: int = 77) -> None:
    """Sets every attention's processor to what was chosen for its shape."""
    modules = dict(unet.named_modules())
    backends = {choice.shape: choice.backend for choice in choices}
    for name, shape in attention_shapes(unet, tokens).items():
        modules[name].set_processor(PROCESSORS[backends[shape]]())


def _choose(shape: AttentionShape, wanted: str, use: Use) -> tuple[str, str]:
    if wanted == "sdpa":
        return "sdpa", "asked for"
    if wanted == "auto" and use.device.type == "cpu":
        return "sdpa", "no xformers operator runs on a CPU"
    raced = [name for name in PROCESSORS if name != "xformers" or not use.one_graph] if wanted == "auto" else [wanted]
    seconds, refused = _test(raced, shape, use)
    if wanted != "auto":
        return (wanted, "asked for") if wanted in seconds else ("sdpa", refused[wanted])
    ranking = sorted(seconds, key=lambda name: seconds[name])
    times = ", ".join(f"{name} {1e3 * seconds[name]:.2f} ms" for name in ranking)
    refused |= {"xformers": "xformers can't be part of one graph"} if use.one_graph else {}
    return ranking[0], times + "".join(f"; {why}" for name, why in refused.items() if name == "xformers")


def _test(names: Iterable[str], shape: AttentionShape, use: Use) -> tuple[dict[str, float], dict[str, str]]:
    """Seconds of the backends that pass their self-test, and why the others don't run."""
    seconds: dict[str, float] = {}
    refused: dict[str, str] = {}
    for name in names:
        if name == "xformers" and not is_xformers_available():
            refused[name] = "xformers is not installed: pip install 'randcond[xformers]'"
            continue
        if name == "xformers" and shape.head_dim % 8:
            refused[name] = f"xformers needs head dims divisible by 8, this one is {shape.head_dim}"
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch tells at length why each kernel it did not take can't run
                seconds[name] = self_test(name, shape, use)
        except Exception as error:  # whatever a foreign kernel may raise: SDPA always works
            said = (str(error).strip().splitlines() or [""])[0]
            refused[name] = f"{name} failed its self-test: {type(error).__name__}: {said}"
    return seconds, refused


def self_test(backend: str, shape: AttentionShape, use: Use) -> float:
    """Seconds of one call (and its backward) at this shape, in diffusers' own attention layer.

    Raises whatever the kernel raises, and RuntimeError when its output, or where it trains a gradient, disagrees with
    SDPA's by more than rounding.
    """
    dtype, device, batch, trains, _ = use
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        width = shape.heads * shape.head_dim
        layer = Attention(width, heads=shape.heads, dim_head=shape.head_dim).to(device, dtype)
        hidden = torch.randn(batch, shape.queries, width, device=device, dtype=dtype)
        text = torch.randn(batch, shape.keys, width, device=device, dtype=dtype)
    layer.set_processor(PROCESSORS[backend]())
    seconds = _race(layer, hidden, text, trains)
    drawn = _outputs(layer, hidden[:2], text[:2], trains)
    layer.set_processor(AttnProcessor2_0())
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-3
    by_sdpa = _outputs(layer, hidden[:2], text[:2], trains)
    largest = {what: expected.abs().max() for what, expected in by_sdpa.items()}
    if shape.keys == 1:  # a softmax over one key is 1 whatever the key: these gradients are 0, or rounding
        largest |= dict.fromkeys(largest.keys() & OF_SOFTMAX, max(largest.values()))
    for what, expected in by_sdpa.items():
        worst = (drawn[what] - expected).abs().max() / largest[what]
        if not worst < tolerance:  # nor where it is not a number
            raise RuntimeError(f"{what} differs from SDPA's by {worst:.1e} of the largest value")
    return seconds


def _outputs(layer: nn.Module, hidden: Tensor, text: Tensor, trains: bool) -> dict[str, Tensor]:
    """What a call gives, in fp32, and the gradients of its squares' sum by what it is given and by its weights."""
    given = [each.detach().clone().requires_grad_(trains) for each in (hidden, text)]
    with torch.set_grad_enabled(trains):
        out = layer(*given)
    found = {"its output": out.detach().float()}
    if trains:
        names = ["hidden states", "text", *(name for name, _ in layer.named_parameters())]
        found |= {
            f"its gradient by {name}": gradient.float()
            for name, gradient in zip(
                names, torch.autograd.grad(out.float().square().sum(), [*given, *layer.parameters()]), strict=True
            )
        }
    return found


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
