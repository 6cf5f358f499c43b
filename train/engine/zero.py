"""DeepSpeed ZeRO behind the engines' seam: stage 1 or 2, fp32 or bf16 with fp32 master weights and accumulation."""

import os
from typing import Any

os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

from randcond.launch.config import Config
from randcond.model_zoo.condition import Condition
from randcond.train.engine import STATE_KINDS, batch_shape


class ZeroEngine:
    """A DeepSpeed engine whose state goes in and out by parameter name."""

    def __init__(self, config: Config, module: nn.Module) -> None:
        cuda = torch.cuda.is_available()
        for variable, alone in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1")):
            os.environ.setdefault(variable, alone)
        os.environ.setdefault("MASTER_PORT", str(_free_port()))
        if not dist.is_initialized():
            deepspeed.init_distributed("nccl" if cuda else "gloo", verbose=False)
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
        self.dtype = torch.bfloat16 if config.engine.precision == "bf16" else torch.float32
        self.module = module
        train = config.train
        optimizer = torch.optim.AdamW(
            module.parameters(),
            lr=train.lr,
            betas=(train.betas[0], train.betas[1]),
            eps=train.eps,
            weight_decay=train.weight_decay,
        )
        self.engine, self.zero, _, _ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=deepspeed_config(config, self.ranks)
        )
        self._check_precision()
        # The fp32 master weights this rank owns: one flat partition per parameter group.
        self.masters: list[Tensor] = _masters(self.zero)
        self.ema = [master.detach().clone() for master in self.masters]
        self.optimizer: torch.optim.Optimizer = self.zero.optimizer

    def _check_precision(self) -> None:
        """One precision mode: every parameter computes in the dtype asked for, every master weight is fp32."""
        wrong = [name for name, p in self.module.named_parameters() if p.dtype != self.dtype]
        assert not wrong, f"parameters not in {self.dtype}: {wrong[:3]}"
        assert all(master.dtype == torch.float32 for master in _masters(self.zero))

    def forward(self, noised: Tensor, timesteps: Tensor, condition: Condition) -> tuple[Tensor, list[Tensor]]:
        return self.engine(noised, timesteps, condition)

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)

    def step(self, lr: float, ema_decay: float) -> Tensor | float:
        last = self.engine.is_gradient_accumulation_boundary()
        if last:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
        self.engine.step()
        if last:
            torch._foreach_lerp_(self.ema, [master.detach() for master in self.masters], 1 - ema_decay)
        return self.engine.get_global_grad_norm() if last else 0.0

    def all_sum(self, values: Tensor) -> Tensor:
        dist.all_reduce(values)
        return values

    def broadcast(self, value: Any) -> Any:
        held = [value]
        dist.broadcast_object_list(held, src=0)
        return held[0]

    def gather(self, kind: str) -> dict[str, Tensor]:
        assert kind in STATE_KINDS, kind
        parameters = self.module.named_parameters()
        if kind in ("exp_avg", "exp_avg_sq"):
            read = {name: safe_get_full_optimizer_state(p, kind) for name, p in parameters}
        elif kind == "ema":  # the library gathers master weights: lend it the average for the moment
            masters = [master.detach().clone() for master in self.masters]
            self._set_masters(self.ema)
            read = {name: safe_get_full_fp32_param(p) for name, p in parameters}
            self._set_masters(masters)
        else:
            read = {name: safe_get_full_fp32_param(p) for name, p in parameters}
        return {name: tensor.detach().float().cpu().clone() for name, tensor in read.items()}

    def _set_masters(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            torch._foreach_copy_(self.masters, values)

    def load(self, state: dict[str, dict[str, Tensor]], step: int) -> None:
        parameters = dict(self.module.named_parameters())
        self._make_optimizer_state(step)
        for name, parameter in parameters.items():
            safe_set_full_fp32_param(parameter, state["ema"][name].to(self.device))
        self.ema = [master.detach().clone() for master in self.masters]
        for name, parameter in parameters.items():
            safe_set_full_fp32_param(parameter, state["weights"][name].to(self.device))
            for kind in ("exp_avg", "exp_avg_sq"):
                safe_set_full_optimizer_state(parameter, state[kind][name].to(self.device), kind)
            with torch.no_grad():
                parameter.copy_(state["weights"][name])

    def _make_optimizer_state(self, step: int) -> None:
        """AdamW makes its moments at the first step: makes them now, empty, as after `step` steps."""
        for master in self.masters:
            self.optimizer.state[master] = {
                "step": torch.tensor(float(step)),
                "exp_avg": torch.zeros_like(master),
                "exp_avg_sq": torch.zeros_like(master),
            }
        self.zero._lazy_init_hp_params_optimizer_state()  # what its first step does: link moments to parameters

    def barrier(self) -> None:
        dist.barrier()

    def close(self) -> None:
        dist.destroy_process_group()


def deepspeed_config(config: Config, ranks: int) -> dict[str, Any]:
    """The DeepSpeed configuration, built from the experiment's `engine:` and `train:` sections."""
    micro, accumulation = batch_shape(config.train.global_batch, ranks, config.engine.micro_batch)
    settings: dict[str, Any] = {
        "train_batch_size": config.train.global_batch,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.train.grad_clip,
        "zero_optimization": {"stage": config.engine.zero_stage},
        "steps_per_print": 10**9,
    }
    if config.engine.precision == "bf16":
        settings["bf16"] = {"enabled": True}
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings


def _masters(zero: Any) -> list[Tensor]:
    for name in ("single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
        if hasattr(zero, name):
            return list(getattr(zero, name))
    raise AssertionError(f"no fp32 master weights in {type(zero).__name__}")


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
