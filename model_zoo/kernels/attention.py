"""Chooses an attention backend for each attention shape of a denoiser.

A backend must pass a self-test. "auto" measures all backends that pass and takes the fastest.
Backends: SDPA with torch's own choice of kernel, SDPA restricted to one kernel (flash, cudnn, efficient), xformers.
xformers does not run on CPUs, with head dims that are not divisible by 8 (C-Small: 28, C-Micro: 20), or if it was
built for another version of torch. Such modules keep SDPA, and the log gives the reason.
"""

import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from diffusers import ModelMixin
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, XFormersAttnProcessor
from diffusers.utils import is_xformers_available
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from randcond.model_zoo.denoiser.architecture import Architecture, once_per_architecture
from randcond.model_zoo.denoiser.forward import blank_forward

ROUNDS = 5  # timed calls per backend; the fastest one counts
REQUESTED = "requested"  # the reason for a backend that the configuration names
GRADIENT = "the gradient with respect to"
SOFTMAX_GRADIENTS = {f"{GRADIENT} {name}" for name in ("hidden states", "to_q.weight", "to_k.weight")}


class KernelProcessor(AttnProcessor2_0):
    """diffusers' SDPA attention processor, restricted to one kernel."""

    def __init__(self, kernel: SDPBackend) -> None:
        super().__init__()
        self.kernel = kernel

    def __call__(self, *inputs: Any, **options: Any) -> Tensor:  # noqa: D102 (documented by diffusers)
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
    """The sizes that decide which backends can run and which one is fastest."""

    heads: int
    head_dim: int
    queries: int  # number of query tokens
    keys: int  # number of key tokens; in cross-attention, the caption's


class Use(NamedTuple):
    """The conditions under which a network runs its attention modules."""

    dtype: torch.dtype
    device: torch.device
    batch: int
    trains: bool  # the backward pass is tested and timed too
    one_graph: bool = False  # the network is compiled as one graph


@dataclass(frozen=True)
class Choice:
    """The backend of all attention modules of one shape."""

    shape: AttentionShape
    modules: int  # number of modules of this shape
    backend: str  # a key of PROCESSORS
    why: str  # REQUESTED, or the reason for this backend


def choice_from(stored: dict[str, Any]) -> Choice:
    """Rebuilds a choice from its JSON form."""
    why = {"asked for": REQUESTED}.get(stored["why"], stored["why"])  # older runs stored another word
    return Choice(**{**stored, "shape": AttentionShape(*stored["shape"]), "why": why})


def attention_shapes(network: ModelMixin, tokens: int | None = None) -> dict[str, AttentionShape]:
    """Returns the shape of every attention module by name. tokens: length of the text; None: the family's."""
    return _measure_shapes(Architecture.of(network), tokens)


@once_per_architecture
def _measure_shapes(denoiser: Architecture, tokens: int | None) -> dict[str, AttentionShape]:
    """Returns what attention_shapes() returns, from a forward pass on the meta device."""
    shapes: dict[str, AttentionShape] = {}

    def record(name: str) -> Any:
        def hook(module: Attention, inputs: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
            hidden = inputs[0]
            text = kwargs.get("encoder_hidden_states")
            keys = hidden.shape[1] if text is None else text.shape[1]
            shapes[name] = AttentionShape(module.heads, module.inner_dim // module.heads, hidden.shape[1], keys)

        return hook

    with torch.device("meta"), torch.no_grad():
        network = denoiser.build()
        for name, module in network.named_modules():
            if isinstance(module, Attention):
                module.register_forward_pre_hook(record(name), with_kwargs=True)
        blank_forward(denoiser, network, tokens=tokens)
    return shapes


def choose_attention(network: ModelMixin, requested: str, use: Use, tokens: int | None = None) -> list[Choice]:
    """Chooses a backend for each attention shape. Does not set it, because one rank chooses for all ranks.

    requested: a name in PROCESSORS, or "auto". A named backend that fails its self-test is replaced by "sdpa".
        "auto" takes the fastest backend, or "sdpa" on a CPU. It leaves out xformers if the network is compiled as one
        graph, because torch.compile cannot trace how xformers chooses an operator.
    tokens: length of the text; None: the family's.
    Returns no choice for a family whose attention keeps its own processors: joint attention, or attention with a mask.
    """
    if not Architecture.of(network).family.chooses_attention:
        return []
    by_shape: dict[AttentionShape, int] = defaultdict(int)
    for shape in attention_shapes(network, tokens).values():
        by_shape[shape] += 1
    return [Choice(shape, modules, *_choose(shape, requested, use)) for shape, modules in by_shape.items()]


def set_attention(network: ModelMixin, choices: list[Choice], tokens: int | None = None) -> None:
    """Sets the processor of every attention module to the backend chosen for its shape."""
    if not choices:
        return
    modules = dict(network.named_modules())
    backends = {choice.shape: choice.backend for choice in choices}
    for name, shape in attention_shapes(network, tokens).items():
        modules[name].set_processor(PROCESSORS[backends[shape]]())


def _choose(shape: AttentionShape, requested: str, use: Use) -> tuple[str, str]:
    """Returns the backend for one shape, and the reason for it."""
    if requested == "sdpa":
        return "sdpa", REQUESTED
    if requested == "auto" and use.device.type == "cpu":
        return "sdpa", "no xformers operator runs on a CPU"
    if requested != "auto":
        seconds, failures = _time_backends([requested], shape, use)
        return (requested, REQUESTED) if requested in seconds else ("sdpa", failures[requested])
    candidates = [name for name in PROCESSORS if name != "xformers" or not use.one_graph]
    seconds, failures = _time_backends(candidates, shape, use)
    ranking = sorted(seconds, key=lambda name: seconds[name])
    times = ", ".join(f"{name} {1e3 * seconds[name]:.2f} ms" for name in ranking)
    if use.one_graph:
        failures["xformers"] = "xformers can't be part of one graph"
    return ranking[0], times + (f"; {failures['xformers']}" if "xformers" in failures else "")


def _time_backends(names: Iterable[str], shape: AttentionShape, use: Use) -> tuple[dict[str, float], dict[str, str]]:
    """Returns the seconds of each backend that passes its self-test, and the reason for each that fails."""
    seconds: dict[str, float] = {}
    failures: dict[str, str] = {}
    for name in names:
        if name == "xformers" and not is_xformers_available():
            failures[name] = "xformers is not installed: pip install 'randcond[xformers]'"
            continue
        if name == "xformers" and shape.head_dim % 8:
            failures[name] = f"xformers needs head dims divisible by 8, this one is {shape.head_dim}"
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns about every kernel that it did not take
                seconds[name] = self_test(name, shape, use)
        except Exception as error:  # a third-party kernel can raise anything; SDPA always works
            reason = (str(error).strip().splitlines() or [""])[0]
            failures[name] = f"{name} failed its self-test: {type(error).__name__}: {reason}"
    return seconds, failures


def self_test(backend: str, shape: AttentionShape, use: Use) -> float:
    """Returns the seconds of one call of diffusers' attention layer with a backend, after comparing it with SDPA.

    If `use.trains`, the backward pass is timed and compared too.
    Raises RuntimeError if the output or a gradient differs from SDPA's by more than rounding. Errors of the kernel are
    not caught.
    """
    dtype, device, batch, trains, _ = use
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        width = shape.heads * shape.head_dim
        layer = Attention(width, heads=shape.heads, dim_head=shape.head_dim).to(device, dtype)
        hidden = torch.randn(batch, shape.queries, width, device=device, dtype=dtype)
        text = torch.randn(batch, shape.keys, width, device=device, dtype=dtype)
    layer.set_processor(PROCESSORS[backend]())
    seconds = _seconds_per_call(layer, hidden, text, trains)
    by_backend = _output_and_gradients(layer, hidden[:2], text[:2], trains)
    layer.set_processor(AttnProcessor2_0())
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-3
    by_sdpa = _output_and_gradients(layer, hidden[:2], text[:2], trains)
    largest = {what: expected.abs().max() for what, expected in by_sdpa.items()}
    if shape.keys == 1:  # the softmax over one key is always 1, so these gradients are 0 up to rounding
        largest |= dict.fromkeys(largest.keys() & SOFTMAX_GRADIENTS, max(largest.values()))
    for what, expected in by_sdpa.items():
        worst = (by_backend[what] - expected).abs().max() / largest[what]
        if not worst < tolerance:  # also catches NaN
            raise RuntimeError(f"{what} differs from SDPA's by {worst:.1e} of the largest value")
    return seconds


def _output_and_gradients(layer: nn.Module, hidden: Tensor, text: Tensor, trains: bool) -> dict[str, Tensor]:
    """Returns the layer's output and, if `trains`, gradients of the sum of its squares; all in fp32.

    The gradients are those with respect to the inputs and the layer's weights.
    """
    inputs = [tensor.detach().clone().requires_grad_(trains) for tensor in (hidden, text)]
    with torch.set_grad_enabled(trains):
        out = layer(*inputs)
    tensors = {"the output": out.detach().float()}
    if trains:
        names = ["hidden states", "text", *(name for name, _ in layer.named_parameters())]
        gradients = torch.autograd.grad(out.float().square().sum(), [*inputs, *layer.parameters()])
        tensors |= {f"{GRADIENT} {name}": grad.float() for name, grad in zip(names, gradients, strict=True)}
    return tensors


def _seconds_per_call(layer: nn.Module, hidden: Tensor, text: Tensor, trains: bool) -> float:
    """Returns the seconds of the fastest of ROUNDS calls, with the backward pass if `trains`."""
    times = []
    for _ in range(ROUNDS):
        if hidden.is_cuda:
            torch.cuda.synchronize(hidden.device)
        start = time.perf_counter()
        with torch.set_grad_enabled(trains):
            out = layer(hidden, text)
            if trains:
                out.sum().backward()
        if hidden.is_cuda:
            torch.cuda.synchronize(hidden.device)
        times.append(time.perf_counter() - start)
    return min(times)


def summary(choices: list[Choice]) -> str:
    """Returns a log line such as "sdpa 20, xformers 12 modules", with reasons for backends that were not requested."""
    if not choices:
        return "its own processors (SDPA, with torch's choice of kernel)"
    counts: dict[str, int] = defaultdict(int)
    reasons: dict[str, None] = {}
    for choice in choices:
        counts[choice.backend] += choice.modules
        if choice.why != REQUESTED:
            reasons[f"head dim {choice.shape.head_dim}, {choice.shape.queries} tokens: {choice.why}"] = None
    if len({choice.why for choice in choices}) == 1:
        reasons = {} if choices[0].why == REQUESTED else {choices[0].why: None}
    line = ", ".join(f"{backend} {count}" for backend, count in sorted(counts.items())) + " modules"
    return line + (f" ({'; '.join(reasons)})" if reasons else "")
