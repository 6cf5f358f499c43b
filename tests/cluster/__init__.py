"""Tests with two hosts and a Slurm cluster, which they set up on this machine; they need root."""
