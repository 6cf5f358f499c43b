"""Installs the Debian packages that the cluster tests need, if they are missing and the user is root."""

import os
import shutil
import subprocess

import pytest

HOSTS = {"sshd": "openssh-server", "ssh": "openssh-client", "pdsh": "pdsh", "ip": "iproute2"}
SLURM = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge"}


def need(packages: dict[str, str]) -> None:
    """Installs missing packages (command -> package). Fails the test if the user is not root or apt-get fails."""
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
