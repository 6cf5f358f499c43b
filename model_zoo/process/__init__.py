"""Diffusion processes: how latents are noised, what the denoiser predicts, and which timesteps there are."""
