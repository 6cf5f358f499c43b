"""A Slurm cluster of two nodes on one machine, apart from the system's own: munged, slurmctld, two slurmd."""

import os
import socket
import subprocess
import time
from pathlib import Path

from tests.support.patience import HANG

NODES = ("node1", "node2")


class Slurm:
    """A context in which the cluster is up. Slurm commands need its `environment`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: list[subprocess.Popen[bytes]] = []
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def __enter__(self) -> "Slurm":
        self._start_munge()
        (self.folder / "slurm.conf").write_text(self._configuration())
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=autodetect\n")
        self._start("slurmctld", "-D")
        for node in NODES:
            (self.folder / node).mkdir()
            self._start("slurmd", "-D", "-N", node, name=node)
        deadline = time.monotonic() + HANG
        while self.sh("sinfo", "-h", "-o", "%D %t").strip() != f"{len(NODES)} idle":
            assert time.monotonic() < deadline, self.sh("sinfo") + self._logs()
            time.sleep(0.5)
        return self

    def __exit__(self, *_: object) -> None:
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(timeout=HANG)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def sh(self, *words: str, cwd: Path | None = None) -> str:
        """Runs a Slurm command and returns what it printed."""
        done = subprocess.run(words, env=self.environment, cwd=cwd, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}{self._logs()}"
        return done.stdout

    def state(self, job: str) -> str:
        """Returns the state of a job, such as RUNNING."""
        said = self.sh("scontrol", "show", "job", job)
        return said.split("JobState=")[1].split()[0]

    def _start(self, *words: str, name: str = "") -> None:
        log = (self.folder / f"{name or words[0]}.stderr").open("wb")
        self.daemons.append(subprocess.Popen(words, env=self.environment, stdout=log, stderr=log))

    def _start_munge(self) -> None:
        """Starts a munged with its own key. It accepts only folders that no other user can write to."""
        place = self.folder / "munge"
        place.mkdir(mode=0o755)
        key = place / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        options = [f"--key-file={key}", f"--socket={place / 'socket'}", f"--pid-file={place / 'pid'}"]
        options += [f"--log-file={place / 'log'}", f"--seed-file={place / 'seed'}"]
        self._start("munged", "--foreground", "--force", *options)
        deadline = time.monotonic() + HANG
        while not (place / "socket").exists():
            assert time.monotonic() < deadline, self._logs()
            time.sleep(0.1)

    def _configuration(self) -> str:
        host = socket.gethostname()
        ports = _free_ports(1 + len(NODES))
        cpus = os.cpu_count() or 1
        lines = [
            "ClusterName=test",
            f"SlurmctldHost={host}(127.0.0.1)",
            f"SlurmctldPort={ports[0]}",
            "SlurmUser=root",
            "AuthType=auth/munge",
            f"AuthInfo=socket={self.folder / 'munge' / 'socket'}",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "SwitchType=switch/none",
            "MpiDefault=none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_CPU",
            "ReturnToService=2",
            "KillWait=30",
            "MinJobAge=600",
            f"StateSaveLocation={self.folder / 'state'}",
            f"SlurmdSpoolDir={self.folder}/%n",
            f"SlurmctldPidFile={self.folder}/slurmctld.pid",
            f"SlurmdPidFile={self.folder}/%n.pid",
            f"SlurmctldLogFile={self.folder}/slurmctld.log",
            f"SlurmdLogFile={self.folder}/%n.log",
            *(
                f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} State=UNKNOWN"
                for node, port in zip(NODES, ports[1:], strict=True)
            ),
            f"PartitionName=all Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE State=UP",
        ]
        (self.folder / "state").mkdir()
        return "\n".join(lines) + "\n"

    def _logs(self) -> str:
        return "".join(f"\n== {path.name}\n{path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.log")))


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
