"""The base class of the engines: fp32 state in pieces by parameter name, the EMA, collectives.

A piece is a contiguous range of the values of one flattened parameter. It is a view into the storage of the engine on
this rank. The flat partitions of ZeRO and the row shards of FSDP are both such ranges, so that checkpoints, EMA and
export work the same for every engine.
"""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from randcond.launch.config.sections import Config
from randcond.launch.runtime.ranks import device
from randcond.model_zoo.families.base.family import Condition
from randcond.train.engine.adamw_8bit import MOMENTS, AdamW8bit, local
from randcond.train.engine.ema import Ema, build_ema

State = dict[str, dict[str, Tensor]]  # kind -> "name@start" -> values [n], fp32
Reader = Callable[[str, str, int, int], Tensor]  # (kind, name, start, stop) -> values [stop - start], fp32
STATE_KINDS = ("weights", "ema", *MOMENTS)


@dataclass
class Piece:
    """A contiguous range of the fp32 master weights of one parameter, on this rank."""

    name: str  # of the parameter
    start: int  # index of the first value in the flattened parameter
    weights: Tensor  # [n], a view
    saved: bool = True  # this rank writes it into checkpoints; False if it is a replica that another rank writes


class Engine:
    """The part of an engine that works on pieces. Subclasses find the pieces and run the training step."""

    optimizer: torch.optim.Optimizer  # AdamW or AdamW8bit on this rank's share of the master weights

    def __init__(self, config: Config, module: nn.Module) -> None:
        """Needs an initialised process group and a module that is not sharded yet."""
        self.module = module
        self.shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
        # Such as position embeddings. Nothing trains them, and the engine may round its own.
        self.buffers = {
            name: tensor.clone().cpu() for name, tensor in module.state_dict().items() if name not in self.shapes
        }
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.device = device()
        self.dtype = torch.bfloat16 if config.engine.precision == "bf16" else torch.float32
        self.skip_nonfinite = config.train.skip_nonfinite > 0
        self.skipped = 0  # steps skipped because their gradient was NaN or infinite
        self.pieces: list[Piece] = []
        self.ema: Ema | None = None
        self._keeps_ema = config.engine.ema
        # Control messages between the ranks go over the CPU (gloo), so that they don't wait for the GPU or delay it.
        self._control = (
            dist.new_group(backend="gloo", timeout=collective_timeout(config)) if dist.get_backend() != "gloo" else None
        )

    # Implemented by subclasses --------------------------------------------------------------------------------------

    def forward(self, noised: Tensor, timesteps: Tensor, condition: Condition) -> tuple[Tensor, list[Tensor]]:
        """Runs the forward of the wrapped module (`TappedStudent.forward`).

        noised [B, C, h, w], timesteps [B], condition -> prediction [B, C, h, w], features in the teacher's widths.
        """
        raise NotImplementedError

    def backward(self, loss: Tensor) -> None:
        """Runs the backward of the loss of one micro-batch, a scalar."""
        raise NotImplementedError

    def step(self, lr: float, ema_decay: float) -> Tensor | float:
        """Updates the weights and the EMA after the last micro-batch of a step. Call it after every backward().

        Returns the gradient norm before clipping, a scalar; 0.0 after the other micro-batches.
        With `train.skip_nonfinite`, a norm that is NaN or infinite changes nothing and increases `skipped`.
        """
        raise NotImplementedError

    def master_of(self, piece: Piece) -> tuple[Tensor, int]:
        """Returns the optimizer's parameter that holds a piece, and the index of the piece's first value in it."""
        raise NotImplementedError

    def init_moments(self) -> None:
        """Creates the moments of AdamW, filled with zeros, for all weights.

        AdamW itself creates them in its first step, and only for weights that have a gradient. A checkpoint needs them
        for all weights, and it may be saved when all steps so far were skipped.
        """
        raise NotImplementedError

    def update_compute_weights(self) -> None:
        """Copies changed master weights into the weights of the module, in its dtype."""
        raise NotImplementedError

    # Implemented on the pieces --------------------------------------------------------------------------------------

    def _set_pieces(self, pieces: list[Piece]) -> None:
        """Sets the pieces, starts the EMA at their values, and creates the moments."""
        assert all(piece.weights.dtype == torch.float32 for piece in pieces), "master weights must be fp32"
        self.pieces = pieces
        self.ema = build_ema(self._keeps_ema, [piece.weights.detach() for piece in pieces])
        self.init_moments()

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of state that this engine has: STATE_KINDS, without the EMA if `engine.ema` is off."""
        return tuple(kind for kind in STATE_KINDS if kind != "ema" or self.ema is not None)

    def _finish_ema(self) -> None:
        """Waits for the EMA of the previous step. To be called before the weights change."""
        if self.ema is not None:
            self.ema.finish()

    def _update_ema(self, decay: float) -> None:
        if self.ema is not None:
            self.ema.update(decay)

    def _values(self, kind: str) -> Iterator[Tensor]:
        """Yields the values [n] of each piece, fp32: views, but copies of moments that are stored in 8 bits.

        The copies are made one by one: all together they would take as much memory as the weights.
        """
        if kind == "ema":
            assert self.ema is not None
            self.ema.finish()
            yield from self.ema.average
        elif kind == "weights":
            yield from (piece.weights for piece in self.pieces)
        else:
            yield from (self._moment(piece, kind) for piece in self.pieces)

    def _moment(self, piece: Piece, kind: str) -> Tensor:
        master, start = self.master_of(piece)
        held, stop = self.optimizer.state[master][kind], start + piece.weights.numel()
        return local(held).view(-1)[start:stop] if isinstance(held, Tensor) else held.read(start, stop)

    def local_state(self) -> State:
        """Returns a CPU copy of this rank's share of the state. The shares of all ranks cover every value once."""
        return {
            kind: {
                f"{piece.name}@{piece.start}": values.detach().to("cpu", copy=True)
                for piece, values in zip(self.pieces, self._values(kind), strict=True)
                if piece.saved
            }
            for kind in self.kinds
        }

    @torch.no_grad()
    def load(self, read: Reader, step: int) -> None:
        """Loads the state after `step` optimizer steps. Any engine at any world size may have saved it."""
        for state in self.optimizer.state.values():
            state["step"].fill_(step)
        self._finish_ema()
        for kind in self.kinds:
            if kind in MOMENTS and isinstance(self.optimizer, AdamW8bit):
                self._store_moments(kind, read)
                continue
            for piece, values in zip(self.pieces, self._values(kind), strict=True):
                values.copy_(read(kind, piece.name, piece.start, piece.start + values.numel()))
        self.update_compute_weights()

    def _store_moments(self, kind: str, read: Reader) -> None:
        """Reads a moment and stores it in 8 bits, one parameter of the optimizer at a time.

        A block may hold values of several pieces, and its codes depend on all of them.
        """
        pieces: dict[int, list[tuple[Piece, int]]] = {}
        for piece in self.pieces:
            master, start = self.master_of(piece)
            pieces.setdefault(id(master), []).append((piece, start))
        for master, state in self.optimizer.state.items():
            stored = state[kind]
            values = torch.zeros(stored.size, device=stored.codes.device)
            for piece, start in pieces.get(id(master), []):
                size = piece.weights.numel()
                values[start : start + size] = read(kind, piece.name, piece.start, piece.start + size)
            stored.write(values)

    @torch.no_grad()
    def gather(self, kind: str) -> dict[str, Tensor]:
        """Returns one of `kinds` by parameter name on rank 0, {} on the other ranks. Every rank must call it.

        The tensors are fp32, on the CPU, in the shapes of `self.shapes`. Only the host of rank 0 holds the full state.
        The module's buffers stand beside the parameters.
        """
        assert kind in self.kinds, kind
        held: dict[str, list[tuple[int, Tensor]]] = {}
        for piece, values in zip(self.pieces, self._values(kind), strict=True):
            if piece.saved:
                held.setdefault(piece.name, []).append((piece.start, values))
        full = {}
        for name, shape in self.shapes.items():
            flat = torch.zeros(math.prod(shape), device=self.device)
            for start, values in held.get(name, []):
                flat[start : start + values.numel()] = values
            dist.reduce(flat, dst=0)
            if self.rank == 0:
                full[name] = flat.reshape(shape).cpu()
        return {**full, **self.buffers} if self.rank == 0 else full

    def all_sum(self, values: Tensor) -> Tensor:
        """Sums a tensor of any shape over all ranks, in place. Returns it, on all ranks."""
        dist.all_reduce(values)
        return values

    def any_rank(self, value: bool) -> bool:
        """Returns True on all ranks if `value` is True on any rank."""
        flag = torch.tensor(float(value))
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._control)
        return bool(flag)

    def collect(self, value: Any) -> list[Any]:
        """Returns the values (plain data) of all ranks in the order of the ranks, on all ranks."""
        values = [None] * self.ranks
        dist.all_gather_object(values, value, group=self._control)
        return values

    def broadcast(self, value: Any) -> Any:
        """Returns the value (plain data) of rank 0 on all ranks."""
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._control)
        return values[0]

    def barrier(self) -> None:
        """Waits for all ranks."""
        self.any_rank(False)

    def close(self) -> None:
        """Ends the EMA and destroys the process group."""
        if self.ema is not None:
            self.ema.close()
        dist.destroy_process_group()


def collective_timeout(config: Config) -> timedelta:
    """Returns the timeout of a collective. It is longer than the heartbeat's timeouts, which name the lost rank."""
    return timedelta(seconds=config.engine.timeout + config.engine.heartbeat)


def set_single_rank_defaults() -> None:
    """Sets the environment variables of torch.distributed for one rank, unless a launcher has set them."""
    import socket

    for variable, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1")):
        os.environ.setdefault(variable, value)
    if "MASTER_PORT" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            os.environ["MASTER_PORT"] = str(probe.getsockname()[1])


def initial_state(optimizer: torch.optim.Optimizer, master: Tensor) -> dict[str, Any]:
    """Returns the optimizer's state of a parameter before its first step.

    `step` [], `exp_avg` and `exp_avg_sq`: like `master`, or stored in 8 bits.
    """
    if isinstance(optimizer, AdamW8bit):
        return optimizer.initial_state(master)
    return {
        "step": torch.tensor(0.0, device=master.device),  # fused kernels need it on the same device
        **{kind: torch.zeros_like(master) for kind in MOMENTS},
    }


def build_optimizer(config: Config, parameters: Any) -> torch.optim.Optimizer:
    """Returns AdamW with the settings of the `train:` section (by default the paper's, Sec. 4.2)."""
    train = config.train
    settings: dict[str, Any] = {
        "lr": train.lr,
        "betas": (train.betas[0], train.betas[1]),
        "eps": train.eps,
        "weight_decay": train.weight_decay,
    }
    if train.optimizer == "adamw_8bit":
        return AdamW8bit(parameters, **settings)
    return torch.optim.AdamW(parameters, **settings, fused=True)
