"""Where a distributed stage runs: on this machine, on the hosts of a host file, under torchrun or under Slurm."""

import sys
from dataclasses import dataclass
from pathlib import Path

from randcond.launch.cluster.hosts import check_folder_name, read_hostfile
from randcond.launch.errors import UserError

LAUNCHERS = ("deepspeed", "torchrun", "slurm")


@dataclass(frozen=True)
class Place:
    """Where a distributed stage runs. If no field is set: on this machine, with `engine.processes` ranks.

    Raises UserError for combinations that a launcher would silently run on this machine alone.
    """

    hostfile: str | None = None
    nodes: int | None = None
    gpus: int | None = None  # ranks per host
    launcher: str = "deepspeed"
    rdzv: str | None = None  # torchrun on several hosts: host:port of the rendezvous
    master_addr: str | None = None  # deepspeed: address of the first host, if its default one is wrong
    master_port: int | None = None  # deepspeed: port of the first host at which the ranks meet
    may_fork: bool = False  # no launcher was asked for: stages on this machine's CPU may be forked (fork_server.py)

    def __post_init__(self) -> None:
        if self.launcher not in LAUNCHERS:
            raise UserError(f"--launcher: expected one of {', '.join(LAUNCHERS)}, got {self.launcher!r}")
        if 0 in (self.nodes, self.gpus):
            raise UserError("--nodes and --gpus must be at least 1")
        if self.hostfile and self.launcher != "deepspeed":
            raise UserError(f"--hostfile is for the deepspeed launcher; leave it out with --launcher {self.launcher}")
        if self.hostfile:
            hosts = read_hostfile(Path(self.hostfile))
            if self.nodes and self.nodes > len(hosts):
                raise UserError(f"--nodes: is {self.nodes}, but {self.hostfile} lists only {len(hosts)} hosts")
            for host in self.hosts:
                if self.gpus and self.gpus > hosts[host]:
                    raise UserError(f"--gpus: is {self.gpus}, but {host} has slots={hosts[host]} in {self.hostfile}")
            check_folder_name(str(Path.cwd()))
            check_folder_name(sys.executable, "the environment's Python")
        elif self.nodes and self.launcher == "deepspeed":
            raise UserError("--nodes needs a --hostfile, --launcher slurm, or --launcher torchrun with --rdzv")
        if self.launcher == "torchrun" and (self.nodes or 1) > 1 and not self.rdzv:
            raise UserError("--nodes with torchrun needs --rdzv HOST:PORT; run the same command on every host")
        if self.rdzv and (self.launcher != "torchrun" or not self.nodes):
            raise UserError("--rdzv goes with --launcher torchrun and --nodes, the number of hosts that meet there")
        if not self.hostfile and (self.master_addr or self.master_port):
            raise UserError("--master-addr and --master-port go with a --hostfile; leave them out without one")

    def ranks(self, processes: int) -> int:
        """Returns the number of ranks on all hosts together.

        `processes`: ranks per host if neither `gpus` nor a host file gives their number.
        """
        if self.hostfile:
            slots = read_hostfile(Path(self.hostfile))
            return sum(self.gpus or slots[host] for host in self.hosts)
        return (self.nodes or 1) * (self.gpus or processes)

    @property
    def hosts(self) -> list[str]:
        """The hosts of the host file that are used; empty without a host file."""
        return list(read_hostfile(Path(self.hostfile)))[: self.nodes] if self.hostfile else []
