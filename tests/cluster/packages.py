"""Debian packages that the cluster tests need, installed when they are missing and this is root."""

import os
import shutil
import subprocess

import pytest

HOSTS = {"sshd": "openssh-server", "ssh": "openssh-client", "pdsh": "pdsh", "ip": "iproute2"}
SLURM = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge"}


def need(packages: dict[str, str]) -> None:
    """Installs the packages (command -> package) that are missing; fails naming them where that can't be done."""
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    missing = sorted({package for command, package in packages.items() if not shutil.which(command)})
    if os.geteuid():
        pytest.fail("this test builds hosts of its own: run it as root (make test-hosts, make test-slurm)")
    if missing:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update", "-q"], ["install", "-y", "-q", "--no-install-recommends", *missing]):
            done = subprocess.run(["apt-get", *command], env=environment, capture_output=True, text=True)
            if done.returncode:
                pytest.fail(f"needs the Debian packages {', '.join(missing)}; apt-get said: {done.stderr[-500:]}")
