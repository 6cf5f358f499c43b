"""What an experiment will take before it runs: memory, time, GPU-hours, disk."""
