"""The configuration of experiments, the `randcond` command, and the processes it starts on one or many hosts."""
