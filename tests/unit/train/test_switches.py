"""Switches that say `auto` are on where they work; a line says which, and why others are not."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel

from randcond.launch.config.experiments import load_config
from randcond.launch.config.gpus import find_gpu
from randcond.launch.config.sections import Engine
from randcond.launch.planning.costs import Cluster, counted
from randcond.launch.planning.fitting import training_memory
from randcond.train.engine import switches

AUTO = Engine(compile="auto", channels_last="auto", teacher_graph="auto")


def teacher(device: str, kind: Any = UNet2DConditionModel) -> Any:
    """Stands in for a teacher on a device that this machine may not have."""
    return SimpleNamespace(device=torch.device(device), denoiser=kind.__new__(kind))


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(switches, "has_triton", lambda: True)
    return monkeypatch


@pytest.mark.parametrize(
    ("options", "where", "compiled", "layout", "graph", "said"),
    [
        (AUTO, teacher("cuda"), "whole", True, True, "compile: whole is on; channels_last is on; teacher_graph is on"),
        (AUTO, teacher("cpu"), "none", False, False, "compile: whole is off (it pays on a GPU)"),
        (AUTO, teacher("cuda", SD3Transformer2DModel), "whole", False, True, "channels_last is off (a transformer"),
        (replace(AUTO, teacher="sharded"), teacher("cuda"), "whole", True, False, "is off (the teacher is sharded)"),
        (replace(AUTO, compile="blocks"), teacher("cuda"), "blocks", True, False, "is off (it needs compile: whole)"),
        (replace(AUTO, teacher_graph=False), teacher("cuda"), "whole", True, False, "channels_last is on"),
        (Engine(), teacher("cuda"), "none", False, False, ""),
    ],
)
def test_a_switch_is_on_where_it_works(
    triton: object, options: Engine, where: Any, compiled: str, layout: bool, graph: bool, said: str
) -> None:
    found, line = switches.decided(options, where)
    assert (found.compile, found.channels_last, found.teacher_graph) == (compiled, layout, graph)
    assert said in line and bool(line) == bool(said)
    assert switches.decided(found, where) == (found, "")


def test_without_triton_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switches, "has_triton", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old card")
    found, line = switches.decided(AUTO, teacher("cuda"))
    assert (found.compile, found.channels_last, found.teacher_graph) == ("none", True, False)
    assert "does not support an old card" in line and "teacher_graph is off (it needs compile: whole)" in line


@pytest.mark.heavy
def test_the_papers_experiments_leave_it_to_the_device_and_their_graph_is_counted() -> None:
    for name in ("b-base", "koala-700m", "slim", "pixart-14-512"):
        engine = load_config(name).engine
        assert {engine.compile, engine.channels_last, engine.teacher_graph} == {"auto"}, name
    config = load_config("b-base", ["teacher.path=sd-v1-4", "engine.micro_batch=16"])
    sizes, cluster = counted(config), Cluster(find_gpu("h200"), 1, 1)
    graph = {
        words: training_memory(
            load_config("b-base", ["teacher.path=sd-v1-4", "engine.micro_batch=16", words]), sizes, cluster
        )
        for words in ("engine.teacher_graph=auto", "engine.teacher_graph=false", "engine.compile=blocks")
    }
    kept = [memory["teacher's graph"] for memory in graph.values()]
    assert kept[0] > 16 * 10e6 and kept[1:] == [0, 0]
    host = Cluster(replace(cluster.gpu, host=True), 1, 1)
    assert training_memory(config, sizes, host)["teacher's graph"] == 0
