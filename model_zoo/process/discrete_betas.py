"""The process of DDPM, with a discrete schedule of betas: Stable Diffusion's."""

from diffusers import DDPMScheduler
from torch import Tensor

from randcond.launch.errors import UserError
from randcond.model_zoo.process.levels import Level, TableLevel, sd14_time, sigmas_of
from randcond.model_zoo.process.process import Process
from randcond.model_zoo.process.timesteps import TimestepDraw, UniformIntegers


class DiscreteBetas(Process):
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, for integers t in 0 .. T - 1.

    The target is epsilon, v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0, or x_0.
    """

    def __init__(self, schedule: DDPMScheduler) -> None:
        """schedule: holds the betas and the prediction type."""
        self.schedule = schedule
        self.timesteps = schedule.config.num_train_timesteps
        self.grid = range(self.timesteps)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return self.schedule.add_noise(latents, noise, timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        kind = self.schedule.config.prediction_type
        if kind == "v_prediction":
            return self.schedule.get_velocity(latents, noise, timesteps)
        return noise if kind == "epsilon" else latents

    def draw(self, distribution: str, shift: float | None) -> TimestepDraw:
        for key, value, only in (("timesteps", distribution, "uniform"), ("shift", shift, None)):
            if value != only:
                raise UserError(
                    f"train.{key}: {value} is for flow-matching teachers; this one has {self.timesteps} discrete "
                    f"timesteps, which are drawn uniformly: leave train.{key} out"
                )
        return UniformIntegers(self.timesteps)

    def level(self, of: str, shift: float | None) -> Level:
        if of == "time":
            return TableLevel(tuple(t / self.timesteps for t in range(self.timesteps)))
        sigmas = sigmas_of(self.schedule.alphas_cumprod.double().numpy()).tolist()
        return TableLevel(tuple(sigmas if of == "sigma" else map(sd14_time, sigmas)))
