"""What runs, and where: the experiment's configuration, the command line and the commands it starts."""
