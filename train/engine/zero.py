"""The DeepSpeed ZeRO engine: stages 0 to 3, in fp32 or bf16.

In bf16, the master weights and the accumulated gradients are fp32.
"""

import io
import math
import os
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from randcond.launch.config.engines import batch_shape
from randcond.launch.config.sections import Config
from randcond.launch.runtime.logs import FILE_ONLY, log
from randcond.model_zoo.cost.memory import BUCKET
from randcond.model_zoo.families.base.family import Condition
from randcond.train.engine.base import (
    Engine,
    Piece,
    build_optimizer,
    collective_timeout,
    initial_state,
    set_single_rank_defaults,
)
from randcond.train.engine.build_ops import load_operator
from randcond.train.engine.meeting import meeting


class ZeroEngine(Engine):
    """A DeepSpeed engine that saves and loads its state by parameter name."""

    def __init__(self, config: Config, module: nn.Module) -> None:
        set_single_rank_defaults()
        if not dist.is_initialized():
            load_operator()
            backend = "nccl" if torch.cuda.is_available() else "gloo"
            with meeting(collective_timeout(config)):
                deepspeed.init_distributed(backend, verbose=False, timeout=collective_timeout(config))
                dist.barrier()
            _unlink_shared_buffers()
        super().__init__(config, module)
        self.stage = config.engine.zero_stage
        exact = {name: p.detach().to("cpu", copy=True).view(-1) for name, p in module.named_parameters()}
        with redirect_stdout(io.StringIO()) as printed:  # its bf16 optimizer prints the memory several times
            self.engine, self.zero, _, _ = deepspeed.initialize(
                model=module,
                optimizer=build_optimizer(config, module.parameters()),
                config=deepspeed_config(config, self.ranks, sum(math.prod(shape) for shape in self.shapes.values())),
            )
        if text := printed.getvalue().strip():
            log.info(text, extra=FILE_ONLY)
        # In stage 0 with fp32, DeepSpeed does not wrap AdamW, and the parameters themselves are the master weights.
        self.wrapped = hasattr(self.zero, "optimizer")
        self.optimizer: torch.optim.Optimizer = self.zero.optimizer if self.wrapped else self.zero
        # True makes DeepSpeed skip steps with a NaN or infinite gradient. The check costs a wait for the device.
        # Stage 1 in bf16 always makes it.
        self.zero.check_grad_overflow = self.skip_nonfinite
        self._check_precision()
        pieces = self._find_pieces()
        for piece in pieces:  # DeepSpeed has copied its fp32 master weights from weights already rounded to bf16
            piece.weights.copy_(exact[piece.name][piece.start : piece.start + piece.weights.numel()])
        self.update_compute_weights()
        self._set_pieces(pieces)

    def _check_precision(self) -> None:
        """Checks that every parameter has the dtype of `engine.precision`."""
        wrong = [name for name, p in self.module.named_parameters() if p.dtype != self.dtype]
        assert not wrong, f"parameters not in {self.dtype}: {wrong[:3]}"

    def _find_pieces(self) -> list[Piece]:
        pieces = []
        parameters: dict[str, Any] = dict(self.module.named_parameters())  # DeepSpeed adds attributes to them
        for name, parameter in parameters.items():
            if self.stage == 3:
                local, _ = self.zero._get_fp32_opt_state_partition(parameter, release_swap_buffers=False)
                start = self.zero._get_param_partition_rank(parameter) * local.numel()
                length = min(local.numel(), parameter.ds_numel - start)  # the last partition is padded
                if length > 0:
                    pieces.append(Piece(name, start, local.detach()[:length]))
            elif not self.wrapped:
                pieces.append(Piece(name, 0, parameter.detach().view(-1), saved=self.rank == 0))
            elif parameter._hp_mapping is not None:
                mapping = parameter._hp_mapping
                pieces.append(Piece(name, mapping.lp_fragment_address.start, mapping.hp_fragment.detach()))
        return pieces

    def forward(self, noised: Tensor, timesteps: Tensor, condition: Condition) -> tuple[Tensor, list[Tensor]]:
        return self.engine(noised, timesteps, condition)

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)

    def step(self, lr: float, ema_decay: float) -> Tensor | float:
        last = self.engine.is_gradient_accumulation_boundary()
        if last:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self._finish_ema()
        norm = self._plain_norm() if last and not self.wrapped else None
        self.engine.step()
        if not last:
            return 0.0
        if self.skip_nonfinite and self.zero.overflow:
            self.skipped += 1
            return math.inf
        self._update_ema(ema_decay)
        return self.engine.get_global_grad_norm() if norm is None else norm

    def _plain_norm(self) -> Tensor:
        """Returns the gradient norm, a scalar, in stage 0 with fp32, where DeepSpeed does not compute it.

        The gradients are averaged over the ranks already.
        """
        return torch.nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None])

    def master_of(self, piece: Piece) -> tuple[Tensor, int]:
        parameter: Any = self.module.get_parameter(piece.name)
        if self.stage == 3:
            group, start, _ = self.zero.grad_position[self.zero.get_param_id(parameter)]
            return _masters(self.zero)[group], start
        if not self.wrapped:
            return parameter, 0
        mapping = parameter._hp_mapping
        return _masters(self.zero)[mapping.param_group_index], mapping.hp_fragment_address.start

    def init_moments(self) -> None:
        masters = list(self.module.parameters()) if not self.wrapped else _masters(self.zero)
        for master in masters:
            self.optimizer.state[master] = initial_state(self.optimizer, master)

    def update_compute_weights(self) -> None:
        if self.stage == 3:
            for group in range(len(self.zero.fp32_partitioned_groups_flat)):
                self.zero._reassign_or_swap_out_partitioned_parameters(group)
        elif self.wrapped:
            self.zero.update_lp_params()

    def close(self) -> None:
        """Ends the EMA, and destroys the process group and DeepSpeed's records of it: another engine may be built."""
        if self.ema is not None:
            self.ema.close()
        deepspeed.comm.destroy_process_group()


def _unlink_shared_buffers() -> None:
    """Removes the files of DeepSpeed's shared-memory buffers (CPU runs). All ranks have mapped them by now.

    DeepSpeed never removes them. Every run would leave 69 MB per rank in /dev/shm until the next reboot.
    """
    group = f"{os.environ['MASTER_ADDR']}_{os.environ['MASTER_PORT']}"
    for path in Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_{os.getuid()}_{group}_*"):
        path.unlink(missing_ok=True)


def deepspeed_config(config: Config, ranks: int, parameters: int) -> dict[str, Any]:
    """Returns the DeepSpeed configuration, built from the `engine:` and `train:` sections of the experiment.

    `parameters`: the number of parameters of the trained module. Buckets are limited to this size, because stage 3
    allocates them at the start (1 GB by default).
    """
    micro, accumulation = batch_shape(config.train.global_batch, ranks, config.engine.micro_batch)
    stage = config.engine.zero_stage
    settings: dict[str, Any] = {
        "train_batch_size": config.train.global_batch,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.train.grad_clip,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": min(BUCKET, parameters),
            # Stage 1 reduces the gradients after the whole backward. Copying each into a bucket first took a twelfth of
            # the demo's step. (In bf16, stage 1 uses another DeepSpeed optimizer, which never copies them.)
            "contiguous_gradients": stage != 1,
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    if config.engine.precision == "bf16":
        settings["bf16"] = {"enabled": True}
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
        settings["communication_data_type"] = "fp32"  # gradients are reduced in fp32, as in the FSDP2 engine
    return settings


def _masters(zero: Any) -> list[Tensor]:
    """Returns the flat fp32 master weights of a ZeRO optimizer."""
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
        if hasattr(zero, name):
            return list(getattr(zero, name))
    raise AssertionError(f"no fp32 master weights in {type(zero).__name__}")
