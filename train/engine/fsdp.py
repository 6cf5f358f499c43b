"""The FSDP2 engine: full sharding, sharding of gradients and optimizer only, or hybrid sharding in groups.

The sharded fp32 parameters are the master weights. The module computes with bf16 copies (`engine.precision: bf16`).
Gradients are reduced in fp32.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from randcond.launch.config.engines import batch_shape, shard_group
from randcond.launch.config.sections import Config
from randcond.launch.runtime.ranks import local_ranks
from randcond.model_zoo.families.base.family import Condition
from randcond.model_zoo.families.registry import family_of
from randcond.train.engine.base import (
    Engine,
    Piece,
    build_optimizer,
    collective_timeout,
    initial_state,
    set_single_rank_defaults,
)
from randcond.train.engine.meeting import meeting


class FsdpEngine(Engine):
    """FSDP2 with AdamW on sharded fp32 parameters."""

    def __init__(self, config: Config, module: nn.Module) -> None:
        set_single_rank_defaults()
        cuda = torch.cuda.is_available()
        if not dist.is_initialized():
            with meeting(collective_timeout(config)):
                dist.init_process_group("nccl" if cuda else "gloo", timeout=collective_timeout(config))
        super().__init__(config, module)
        options = config.engine
        _, self.accumulation = batch_shape(config.train.global_batch, self.ranks, options.micro_batch)
        self.grad_clip = config.train.grad_clip
        group = shard_group(options.engine_kind, options.shard_group, self.ranks, local_ranks())
        shape, names = ((self.ranks // group, group), ("replicate", "shard"))
        mesh = init_device_mesh("cuda" if cuda else "cpu", shape, mesh_dim_names=names)
        self.replica = mesh.get_local_rank("replicate")
        settings: dict[str, Any] = {
            "mesh": mesh["shard"] if group == self.ranks else mesh,
            # The step casts the inputs itself. FSDP would also round a flow's timesteps, which are in fp32.
            "mp_policy": MixedPrecisionPolicy(
                param_dtype=self.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
            ),
            "reshard_after_forward": not options.spec.keeps_gathered,
        }
        for part in [*_blocks(module.network), module]:
            fully_shard(part, **settings)
        self.optimizer = build_optimizer(config, module.parameters())
        self.micro_batches = 0  # of the current step so far
        self._set_pieces(self._find_pieces())

    def _find_pieces(self) -> list[Piece]:
        pieces = []
        for name, parameter in self.module.named_parameters():
            assert isinstance(parameter, DTensor)
            local = parameter.to_local().detach()
            if local.numel():
                row_size = math.prod(self.shapes[name][1:])
                _, offset = compute_local_shape_and_global_offset(
                    torch.Size(self.shapes[name]), parameter.device_mesh, parameter.placements
                )
                assert isinstance(parameter.placements[-1], Shard) and parameter.placements[-1].dim == 0
                start = offset[0] * row_size if offset else 0
                pieces.append(Piece(name, start, local.view(-1), saved=self.replica == 0))
        return pieces

    def forward(self, noised: Tensor, timesteps: Tensor, condition: Condition) -> tuple[Tensor, list[Tensor]]:
        return self.module(noised, timesteps, condition)

    def backward(self, loss: Tensor) -> None:
        # Gradients are reduced after every micro-batch, so that they accumulate in fp32, as in the ZeRO engine.
        (loss / self.accumulation).backward()

    def step(self, lr: float, ema_decay: float) -> Tensor | float:
        self.micro_batches += 1
        if self.micro_batches < self.accumulation:
            return 0.0
        self.micro_batches = 0
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if self.grad_clip:
            nn.utils.clip_grads_with_norm_(self.module.parameters(), self.grad_clip, norm)
        if self.skip_nonfinite and not norm.isfinite():
            self.optimizer.zero_grad(set_to_none=True)
            self.skipped += 1
            return norm
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self._finish_ema()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._update_ema(ema_decay)
        return norm

    def master_of(self, piece: Piece) -> tuple[Tensor, int]:
        return self.module.get_parameter(piece.name), 0

    def init_moments(self) -> None:
        for parameter in self.module.parameters():
            self.optimizer.state[parameter] = initial_state(self.optimizer, parameter)

    def update_compute_weights(self) -> None:
        """Does nothing. The sharded parameters are the master weights; every forward gathers and casts them."""


def shard_frozen(denoiser: nn.Module) -> None:
    """Shards a frozen denoiser over all ranks, in its own dtype."""
    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (dist.get_world_size(),))
    for part in [*_blocks(denoiser), denoiser]:
        fully_shard(part, mesh=mesh)


def _blocks(denoiser: Any) -> list[nn.Module]:
    """Returns the blocks of a denoiser. Each is gathered as one unit."""
    return family_of(type(denoiser)).blocks(denoiser)
