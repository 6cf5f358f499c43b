"""A micro-batch of the training stream."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """A micro-batch of B samples, on its way from the stream through the distillation step to the monitor."""

    latents: Tensor  # x_0, [B, C, h, w], scaled as the denoiser takes them; fp16, and fp32 after `to_device`
    token_ids: dict[str, Tensor]  # "token_ids", and "token_ids_2" for a second text encoder; int64 [B, L]
    key: Tensor  # int64 [B], number of the latent's own caption
    caption_id: Tensor  # int64 [B], number in the pool of the caption that the latent is shown with; -1: null caption
    timesteps: Tensor  # [B]: int64 in 0 .. T-1, or of a flow fp32 in (0, T]
    noise_seed: Tensor  # int64 [B], seed of the sample's noise
    replaced: Tensor  # bool [B], whether random conditioning replaced the caption
    null: Tensor  # bool [B], whether the null caption is used
    unreplaced_in_batch: int  # number of samples in the global batch that kept their caption; 0 if not counted
    noise: Tensor | None = None  # fp32 [B, C, h, w]; None before `to_device`
    condition: dict[str, Tensor] | None = None  # the encoded captions, as Teacher.encode() returns them; None: not yet

    def __len__(self) -> int:
        """B."""
        return len(self.latents)
