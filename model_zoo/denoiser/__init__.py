"""The denoiser of any family: its architecture, its call, and a run without weights."""
