"""What starts a stage's processes: on this machine, over ssh, under torchrun or Slurm; restarts and preemption."""
