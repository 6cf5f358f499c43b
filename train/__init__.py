"""Training: the distillation step, the engines, the loop, checkpoints and monitoring."""
