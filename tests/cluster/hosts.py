"""Two hosts on one machine: each has a network namespace, a host name and an sshd. A switch joins them.

They share this machine's files, as hosts of a cluster share a file system. `ssh host-a` works on both.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

from tests.support.patience import HANG

NAMES = ("host-a", "host-b")
ADDRESSES = ("10.213.0.1", "10.213.0.2")
SWITCH = "cluster-switch"
LINK = "cluster0"


def sh(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs a command. If it fails and `check` is set, the test fails and shows the output."""
    done = subprocess.run(words, capture_output=True, text=True)
    assert not check or done.returncode == 0, f"{' '.join(words)}: {done.stderr or done.stdout}"
    return done


class TwoHosts:
    """A context in which both hosts are up. `on` is for running commands, `cut` and `mend` are for the link."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sshds: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "TwoHosts":
        self._take_down()
        sh("ip", "link", "add", SWITCH, "type", "bridge")
        sh("ip", "link", "set", SWITCH, "up")
        for name, address in zip(NAMES, ADDRESSES, strict=True):
            own = Path("/etc/netns", name)  # `ip netns exec` mounts it over /etc/hosts, here as on Debian
            own.mkdir(parents=True, exist_ok=True)
            (own / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n")
            sh("ip", "netns", "add", name)
            sh("ip", "link", "add", name, "type", "veth", "peer", "name", LINK, "netns", name)
            sh("ip", "link", "set", name, "master", SWITCH, "up")
            sh("ip", "-n", name, "addr", "add", f"{address}/24", "dev", LINK)
            sh("ip", "-n", name, "link", "set", LINK, "up")
            sh("ip", "-n", name, "link", "set", "lo", "up")
        self._keys()
        for name in NAMES:
            self._start_sshd(name)
        for name in NAMES:
            for other in NAMES:
                self._until_answers(name, other)
        return self

    def __exit__(self, *_: object) -> None:
        self._take_down()

    def _keys(self) -> None:
        """Writes a key, an ssh configuration with the host names, and an `ssh` that uses both. All is in `folder`."""
        key = self.folder / "key"
        sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
        (self.folder / "authorized_keys").write_text((self.folder / "key.pub").read_text())
        config = [
            line
            for name, address in zip(NAMES, ADDRESSES, strict=True)
            for line in (
                f"Host {name}",
                f"  HostName {address}",
                f"  IdentityFile {key}",
                "  StrictHostKeyChecking no",
                "  UserKnownHostsFile /dev/null",
                "  LogLevel ERROR",
            )
        ]
        (self.folder / "ssh_config").write_text("\n".join(config) + "\n")
        tools = self.folder / "bin"
        tools.mkdir()
        (tools / "ssh").write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {self.folder / "ssh_config"} "$@"\n')
        (tools / "ssh").chmod(0o755)

    def _start_sshd(self, name: str) -> None:
        options = {
            "HostKey": self.folder / "key",
            "AuthorizedKeysFile": self.folder / "authorized_keys",
            "PidFile": self.folder / f"{name}.pid",
            "StrictModes": "no",
            "UsePAM": "no",
            "PermitRootLogin": "yes",
            "PasswordAuthentication": "no",
        }
        words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        Path("/run/sshd").mkdir(exist_ok=True)
        inside = f'hostname {name}; exec /usr/sbin/sshd -D -e -f /dev/null "$@"'
        command = ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", inside, "sshd", *words]
        log = (self.folder / f"{name}.sshd.log").open("wb")
        self.sshds.append(subprocess.Popen(command, stdout=log, stderr=log))

    def _until_answers(self, name: str, other: str) -> None:
        deadline = time.monotonic() + HANG
        while sh(*self.on(name), "ssh", other, "true", check=False).returncode:
            assert time.monotonic() < deadline, f"{name} can't reach {other}"
            time.sleep(0.3)

    def on(self, name: str) -> list[str]:
        """Returns the words to put before a command to run it on a host."""
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        inside = f'hostname {name}; PATH="{path}"; export PATH; exec "$@"'
        return ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", inside, "sh"]

    def cut(self) -> None:
        """Disconnects the second host from the switch. Packets are lost, but no host sees its link go down."""
        sh("ip", "link", "set", NAMES[1], "nomaster")

    def mend(self) -> None:
        """Connects the second host again."""
        sh("ip", "link", "set", NAMES[1], "master", SWITCH)

    def processes(self, name: str) -> list[int]:
        """Returns the ids of the randcond processes on a host."""
        found = []
        for pid in map(int, sh("ip", "netns", "pids", name).stdout.split()):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"randcond" in b" ".join(words):
                found.append(pid)
        return found

    def _take_down(self) -> None:
        for name in NAMES:
            for pid in sh("ip", "netns", "pids", name, check=False).stdout.split():
                sh("kill", "-9", pid, check=False)
            sh("ip", "netns", "del", name, check=False)
            sh("ip", "link", "del", name, check=False)
            shutil.rmtree(Path("/etc/netns", name), ignore_errors=True)
        sh("ip", "link", "del", SWITCH, check=False)
        for sshd in self.sshds:
            sshd.wait()
