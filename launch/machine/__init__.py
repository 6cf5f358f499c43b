"""The machine as a process finds it: the user's name and folders, visible GPUs, ranks that a launcher set, networks."""
