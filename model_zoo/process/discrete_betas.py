"""The process of DDPM, with a discrete schedule of betas: Stable Diffusion's."""

from diffusers import DDPMScheduler
from torch import Tensor

from randcond.model_zoo.process.process import Process


class DiscreteBetas(Process):
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, for integers t in 0 .. T - 1.

    The target is epsilon, v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0, or x_0.
    """

    def __init__(self, schedule: DDPMScheduler) -> None:
        """schedule: holds the betas and the prediction type."""
        self.schedule = schedule
        self.timesteps = schedule.config.num_train_timesteps

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return self.schedule.add_noise(latents, noise, timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        kind = self.schedule.config.prediction_type
        if kind == "v_prediction":
            return self.schedule.get_velocity(latents, noise, timesteps)
        return noise if kind == "epsilon" else latents
