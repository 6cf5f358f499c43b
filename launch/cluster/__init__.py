"""Starts the processes of a stage on this machine, over ssh, under torchrun or Slurm; restarts and preemption."""
