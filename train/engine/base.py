"""What every engine shares: fp32 state in pieces by parameter name, the EMA on them, sums over the ranks.

A piece is a run of one parameter's values (flattened) that this rank holds, as a view into the engine's own storage.
ZeRO's flat partitions and FSDP's row shards are both such runs, so checkpoints, EMA and export know no engine.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from randcond.launch.config.sections import Config
from randcond.launch.runtime.ranks import device
from randcond.model_zoo.denoiser.condition import Condition

State = dict[str, dict[str, Tensor]]  # kind -> "name@start" -> values [n], fp32
Reader = Callable[[str, str, int, int], Tensor]  # (kind, name, start, stop) -> values [stop - start], fp32
STATE_KINDS = ("weights", "ema", "exp_avg", "exp_avg_sq")


@dataclass
class Piece:
    """A run of one parameter's fp32 master weights on this rank."""

    name: str
    start: int  # of the run in the flattened parameter
    weights: Tensor  # [n], a view
    mine: bool = True  # whether this rank writes it; False for another rank's replica


class Engine:
    """The part of an engine that only needs its pieces; subclasses say where they are and run the step."""

    optimizer: torch.optim.Optimizer  # AdamW on this rank's share of the master weights

    def __init__(self, config: Config, module: nn.Module) -> None:
        self.module = module
        self.shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}  # before anything is sharded
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.device = device()
        self.dtype = torch.bfloat16 if config.engine.precision == "bf16" else torch.float32
        self.skip_nonfinite = config.train.skip_nonfinite > 0
        self.skipped = 0  # steps that a gradient which is not finite left out
        self.pieces: list[Piece] = []
        self.ema: list[Tensor] = []
        # What the hosts agree on beside the training goes over the CPU: it waits for no GPU and no GPU for it.
        self._control = (
            dist.new_group(backend="gloo", timeout=patience(config)) if dist.get_backend() != "gloo" else None
        )

    # What an engine must say of itself ------------------------------------------------------------------------------

    def forward(self, noised: Tensor, timesteps: Tensor, condition: Condition) -> tuple[Tensor, list[Tensor]]:
        """The wrapped module's forward."""
        raise NotImplementedError

    def backward(self, loss: Tensor) -> None:
        """Backward of one micro-batch's loss."""
        raise NotImplementedError

    def step(self, lr: float, ema_decay: float) -> Tensor | float:
        """Applies the gradients once the last micro-batch of the step is in; returns their norm before clipping.

        With `train.skip_nonfinite` a norm that is not finite leaves everything as it was and counts in `skipped`.
        """
        raise NotImplementedError

    def moment(self, piece: Piece, kind: str) -> Tensor:
        """AdamW's exp_avg or exp_avg_sq of a piece [n], a view."""
        raise NotImplementedError

    def make_moments(self) -> None:
        """Makes AdamW's moments, empty, once: by itself it makes them in a step, for what has a gradient in it.

        A checkpoint holds those of every weight, and may come before a first step that is not left out.
        """
        raise NotImplementedError

    def publish(self) -> None:
        """Brings changed master weights into the weights that compute."""
        raise NotImplementedError

    # What follows from the pieces -----------------------------------------------------------------------------------

    def _hold(self, pieces: list[Piece]) -> None:
        """Takes the pieces, checks that they are fp32, starts the EMA from them, and makes their moments."""
        assert all(piece.weights.dtype == torch.float32 for piece in pieces), "master weights must be fp32"
        self.pieces = pieces
        self.ema = [piece.weights.detach().clone() for piece in pieces]
        self.make_moments()

    def _update_ema(self, decay: float) -> None:
        if self.pieces:
            torch._foreach_lerp_(self.ema, [piece.weights.detach() for piece in self.pieces], 1 - decay)

    def _values(self, kind: str) -> list[Tensor]:
        if kind == "ema":
            return self.ema
        if kind == "weights":
            return [piece.weights for piece in self.pieces]
        return [self.moment(piece, kind) for piece in self.pieces]

    def local_state(self) -> State:
        """This rank's share of the state, copied to the CPU: every value of it is some rank's, of one rank alone."""
        return {
            kind: {
                f"{piece.name}@{piece.start}": values.detach().to("cpu", copy=True)
                for piece, values in zip(self.pieces, self._values(kind), strict=True)
                if piece.mine
            }
            for kind in STATE_KINDS
        }

    @torch.no_grad()
    def load(self, read: Reader, step: int) -> None:
        """Takes the state as after `step` optimizer steps, whatever engine and world size wrote it."""
        for state in self.optimizer.state.values():
            state["step"].fill_(step)
        for kind in STATE_KINDS:
            for piece, values in zip(self.pieces, self._values(kind), strict=True):
                values.copy_(read(kind, piece.name, piece.start, piece.start + values.numel()))
        self.publish()

    @torch.no_grad()
    def gather(self, kind: str) -> dict[str, Tensor]:
        """One of STATE_KINDS as full fp32 CPU tensors by parameter name, on the first rank; empty on the others.

        Every rank must call it. A host holds the whole state once, not once per rank.
        """
        assert kind in STATE_KINDS, kind
        held: dict[str, list[tuple[int, Tensor]]] = {}
        for piece, values in zip(self.pieces, self._values(kind), strict=True):
            if piece.mine:
                held.setdefault(piece.name, []).append((piece.start, values))
        full = {}
        for name, shape in self.shapes.items():
            flat = torch.zeros(math.prod(shape), device=self.device)
            for start, values in held.get(name, []):
                flat[start : start + values.numel()] = values
            dist.reduce(flat, dst=0)
            if self.rank == 0:
                full[name] = flat.reshape(shape).cpu()
        return full

    def all_sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all ranks, on all of them."""
        dist.all_reduce(values)
        return values

    def any(self, mine: bool) -> bool:
        """Whether it is so on any rank, on all of them."""
        flag = torch.tensor(float(mine))
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._control)
        return bool(flag)

    def collect(self, mine: Any) -> list[Any]:
        """Every rank's value (plain data), on all ranks."""
        values = [None] * self.ranks
        dist.all_gather_object(values, mine, group=self._control)
        return values

    def broadcast(self, value: Any) -> Any:
        """The first rank's value (plain data), on all ranks."""
        held = [value]
        dist.broadcast_object_list(held, src=0, group=self._control)
        return held[0]

    def barrier(self) -> None:
        """Waits for all ranks."""
        self.any(False)

    def close(self) -> None:
        """Leaves the process group."""
        dist.destroy_process_group()


def patience(config: Config) -> timedelta:
    """How long a collective may wait: a little longer than the heartbeat, which names whom it waits for."""
    return timedelta(seconds=config.engine.timeout + config.engine.heartbeat)


def describe_alone() -> None:
    """Describes a group of one to torch where no launcher has described a larger one."""
    import socket

    for variable, alone in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1")):
        os.environ.setdefault(variable, alone)
    if "MASTER_PORT" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            os.environ["MASTER_PORT"] = str(probe.getsockname()[1])


def empty_moments(master: Tensor) -> dict[str, Tensor]:
    """AdamW's state of one master weight before its first step."""
    return {
        "step": torch.tensor(0.0, device=master.device),  # fused kernels look for it there
        "exp_avg": torch.zeros_like(master),
        "exp_avg_sq": torch.zeros_like(master),
    }


def optimizer_of(config: Config, parameters: Any) -> torch.optim.AdamW:
    """AdamW as the paper sets it."""
    train = config.train
    return torch.optim.AdamW(
        parameters,
        lr=train.lr,
        betas=(train.betas[0], train.betas[1]),
        eps=train.eps,
        weight_decay=train.weight_decay,
        fused=True,
    )
