"""Where a distributed stage runs: this machine, the hosts of a host file, torchrun's or Slurm's."""

from dataclasses import dataclass
from pathlib import Path

from randcond.launch.cluster.hosts import check_folder_name, read_hostfile
from randcond.launch.errors import UserError

LAUNCHERS = ("deepspeed", "torchrun", "slurm")


@dataclass(frozen=True)
class Place:
    """Where a distributed stage runs; all unset: on this machine with `engine.processes` ranks.

    Raises UserError for a place that a launcher would silently take for this machine.
    """

    hostfile: str | None = None
    nodes: int | None = None
    gpus: int | None = None  # ranks per host
    launcher: str = "deepspeed"
    rdzv: str | None = None  # torchrun: host:port at which several hosts meet
    master_addr: str | None = None  # deepspeed: the first host's address, where its first one is not the right one
    master_port: int | None = None  # deepspeed: the first host's port at which ranks of several hosts meet

    def __post_init__(self) -> None:
        if self.launcher not in LAUNCHERS:
            raise UserError(f"--launcher: one of {', '.join(LAUNCHERS)}, got {self.launcher!r}")
        if 0 in (self.nodes, self.gpus):
            raise UserError("--nodes and --gpus must be at least 1")
        if self.hostfile and self.launcher != "deepspeed":
            raise UserError(f"--hostfile is the deepspeed launcher's; {self.launcher} finds its hosts otherwise")
        if self.hostfile:
            hosts = read_hostfile(Path(self.hostfile))
            if self.nodes and self.nodes > len(hosts):
                raise UserError(f"--nodes: {self.nodes} asked for, {self.hostfile} names {len(hosts)}")
            for host in self.hosts:
                if self.gpus and self.gpus > hosts[host]:
                    raise UserError(f"--gpus: {self.gpus} asked for, {host} has slots={hosts[host]} in {self.hostfile}")
            check_folder_name(str(Path.cwd()))
        elif self.nodes and self.launcher == "deepspeed":
            raise UserError("--nodes needs a --hostfile, or --launcher slurm, or torchrun with --rdzv")
        if self.launcher == "torchrun" and (self.nodes or 1) > 1 and not self.rdzv:
            raise UserError("--nodes with torchrun needs --rdzv HOST:PORT, and the same command on every host")
        if self.rdzv and (self.launcher != "torchrun" or not self.nodes):
            raise UserError("--rdzv goes with --launcher torchrun and --nodes: how many hosts meet there")
        if not self.hostfile and (self.master_addr or self.master_port):
            raise UserError("--master-addr and --master-port go with a --hostfile; others find their own")

    def ranks(self, processes: int) -> int:
        """Ranks on all hosts together; `processes`: on each, where neither `gpus` nor a host file says it."""
        if self.hostfile:
            slots = read_hostfile(Path(self.hostfile))
            return sum(self.gpus or slots[host] for host in self.hosts)
        return (self.nodes or 1) * (self.gpus or processes)

    @property
    def hosts(self) -> list[str]:
        """The hosts of the host file that are used."""
        return list(read_hostfile(Path(self.hostfile)))[: self.nodes] if self.hostfile else []
