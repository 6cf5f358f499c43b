"""Checks before a step starts on other hosts, the environment it gets, and the choice of GPUs."""

import os
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest

from randcond.data.captions.pool import build
from randcond.launch.cluster import commands
from randcond.launch.cluster.commands import Step, plan
from randcond.launch.cluster.hosts import environment_lines, wait_for_hosts
from randcond.launch.cluster.place import Place
from randcond.launch.cluster.supervise import run_steps
from randcond.launch.cluster.torchrun import own_place
from randcond.launch.errors import UserError
from randcond.launch.machine.network_interface import interface_to, name_interface
from randcond.launch.runtime.locks import locked
from randcond.train import dryrun
from tests.support.patience import HANG


@pytest.mark.heavy
def test_the_gpus_that_are_visible_are_the_ones_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uses a planned command and the real deepspeed launcher, which counts this machine's NUMA nodes as devices."""
    monkeypatch.setattr(commands, "on_gpus", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 6,7")
    step, *_ = plan("train", "demo-with", [], Place(gpus=2))
    launcher = step.command[: step.command.index("--module")]
    assert launcher[-2:] == ["--include", "localhost:4,6"]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "LOCAL_SIZE": "8"}
    show = [*launcher, "--no_python", "/bin/sh", "-c", "echo $LOCAL_RANK on $CUDA_VISIBLE_DEVICES"]
    said = subprocess.run(show, env=environment, capture_output=True, text=True, timeout=HANG).stdout
    assert "0 on 4,6" in said and "1 on 4,6" in said
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES=4,6,7 lists 3 GPUs, but 4 ranks need one each"):
        plan("train", "demo-with", [], Place(gpus=4))


def test_the_users_own_environment_stands_over_the_shells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    for folder in (home, work):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    (home / ".deepspeed_env").write_text("# NCCL_DEBUG=INFO\n\nNCCL_SOCKET_IFNAME=ib0\nLD_LIBRARY_PATH=/opt/nodes\n")
    (work / ".deepspeed_env").write_text('LD_LIBRARY_PATH=/opt/nodes/lib\nA="b c"\n')
    shell = {"NCCL_SOCKET_IFNAME": "eth0", "PYTORCH_CUDA_ALLOC_CONF": "a:b", "AWS_SECRET_ACCESS_KEY": "x", "PATH": "/"}
    lines = environment_lines({**shell, "LD_LIBRARY_PATH": "/login"}).splitlines()
    last = dict(line.split("=", 1) for line in lines)
    wanted = {"NCCL_SOCKET_IFNAME": "ib0", "LD_LIBRARY_PATH": "/opt/nodes/lib", "PYTORCH_CUDA_ALLOC_CONF": "a:b"}
    wanted["A"] = "b c"
    assert last == wanted
    (work / ".deepspeed_env").write_text("A=1\nexport KEY=secret\n")
    with pytest.raises(UserError, match=r"\.deepspeed_env, line 2: expected `NAME=value`, found 'export KEY'$"):
        environment_lines({})


def test_hosts_and_tools_are_looked_for_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ssh").write_text("#!/bin/sh\necho noise >&2; echo 'Host key verification failed.' >&2; exit 255\n")
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    first = Step("pool", ["/bin/touch", str(tmp_path / "begun")])
    with pytest.raises(UserError, match=r"from node1 \(Host key verification failed\.\); each must answer"):
        run_steps([first, Step("train", ["/bin/true"], distributed=True, hosts=["node1"])])
    with pytest.raises(UserError, match="pdsh not found here: install pdsh and openssh-client"):
        run_steps([first, Step("train", ["/bin/true"], hosts=["node1"], environment_file=tmp_path / "environment")])
    assert not (tmp_path / "begun").exists()
    (tmp_path / "ssh").write_text("#!/bin/sh\nexit 0\n")
    wait_for_hosts(["node1", "node2"], patience=0)


def test_gloo_talks_where_the_first_rank_is(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {
        each.address: name
        for name, addresses in psutil.net_if_addrs().items()
        for each in addresses
        if each.family.name == "AF_INET" and not each.address.startswith("127.")
    }
    for address, name in own.items():
        assert interface_to(address) == name
    assert interface_to("127.0.0.1") is interface_to("localhost") is interface_to("no.such.host.invalid") is None
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    name_interface()
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    for address, name in own.items():
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
        monkeypatch.setenv("MASTER_ADDR", address)
        name_interface()
        assert os.environ["GLOO_SOCKET_IFNAME"] == "mine"
        monkeypatch.delenv("GLOO_SOCKET_IFNAME")
        name_interface()
        assert os.environ["GLOO_SOCKET_IFNAME"] == name


def test_torchrun_is_told_which_host_is_the_meeting_place(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_place("localhost") == own_place("127.0.0.1") == own_place("no.such.host.invalid") == []
    monkeypatch.setattr("socket.gethostname", lambda: "localhost")  # an own name that leads nowhere, as on Debian
    own = [address for found in psutil.net_if_addrs().values() for address in found if address.family.name == "AF_INET"]
    for address in {each.address for each in own if not each.address.startswith("127.")}:
        assert own_place(address) == [f"--local-addr={address}", "--rdzv-conf=is_host=true"]
    if other := own_place("192.0.2.1"):  # of no host; without a route to it, nothing is said
        assert other[1:] == ["--rdzv-conf=is_host=false"]


def test_a_pool_that_another_run_builds_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts.txt").write_text("a red three\na blue four\n")
    out, made = tmp_path / "pool", []
    with locked(out):
        other = threading.Thread(target=lambda: made.append(build(out, [str(tmp_path / "texts.txt")])))
        other.start()
        time.sleep(1)
        assert not made and f"{out}: waiting for another run that builds this pool" in capsys.readouterr().out
    other.join(30)
    assert made[0]["captions"] == 2


@pytest.mark.heavy
def test_a_cache_on_a_server_needs_its_captions_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["paths.cache=s3://bucket/cache", "cache.captions=[elsewhere/captions.txt]"]
    check, *steps = plan("all", "demo-with", words, Place())
    assert not any(step.label.startswith("cache") for step in steps)
    begin = check.command.index("randcond.train.dryrun") + 1
    for cache, code in (("paths.cache=s3://bucket/cache", 0), ("paths.cache=here", 2)):
        with pytest.raises(SystemExit) as ended:
            dryrun.main([*check.command[begin:], cache])
        assert ended.value.code == code
    assert "elsewhere/captions.txt: no such file" in capsys.readouterr().err
