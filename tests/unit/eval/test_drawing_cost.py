"""What drawing costs is measured as an evaluation draws, kept, and put beside the scores."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from randcond.eval.images import drawing_cost
from randcond.eval.images.drawing_cost import _peak
from randcond.eval.stage import run
from randcond.eval.tables.collect import Row, collect, teacher_rows
from randcond.eval.tables.costs import cost_remarks, cost_table
from randcond.launch.config.tables import load_runs, load_table
from tests.unit.eval.test_evaluation import system


@pytest.mark.heavy
def test_seconds_and_memory_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = system(tmp_path, "eval.cost=true", "eval.size=4", "eval.batch=4")
    run(config)
    path = tmp_path / "out" / "cost.json"
    cost = json.loads(path.read_text())
    assert set(cost["batches"]) == {"1", "4"} and cost["steps"] == 3 and cost["device"].startswith("CPU")
    one, four = cost["batches"]["1"], cost["batches"]["4"]
    weights = sum(file.stat().st_size for file in Path(config.teacher.path).rglob("*.safetensors")) / 1e9
    assert 0.9 * weights < one["gb"] < four["gb"]  # the weights count once, activations per image
    assert four["seconds"] > 0 and not four["extrapolated"]
    before = path.read_bytes()
    run(config)
    assert path.read_bytes() == before
    row = collect(None, {config.name: config})[0]
    assert row.cost == cost
    shown = [f"{what}, batch {batch}" for batch in (1, 4) for what in ("s per image", "GB", "speed-up")]
    assert cost_table([row])[0][-6:] == shown
    path.write_text(json.dumps({**cost, "network": "another"}))
    assert collect(None, {config.name: config})[0].cost == {}  # it is not this one's
    monkeypatch.setattr(drawing_cost, "LONGEST", 0.0)
    run(
        replace(
            config, eval=replace(config.eval, steps=5), paths=replace(config.paths, reference=str(tmp_path / "long"))
        )
    )
    long = json.loads((tmp_path / "long" / "cost.json").read_text())["batches"]["1"]
    assert long["extrapolated"] and long["seconds"] > 0


def test_the_peak_is_that_of_tensors_that_live_together() -> None:
    def work() -> None:
        one = torch.empty(10_000_000)
        other = one + 1  # 80 MB with the first one
        del one
        other.add_(1)

    found, seconds = _peak(work)
    assert found == pytest.approx(80e6, rel=0.01) and seconds > 0


def measured(name: str, seconds: float, device: str = "a card") -> Row:
    batches = {batch: {"seconds": seconds, "gb": 2.0, "extrapolated": False} for batch in ("1", "8")}
    cost = {"device": device, "threads": None, "dtype": "bf16", "batches": batches}
    return Row(name, {"all": {"parameters": 1.07e9, "macs": 339e9}}, cost=cost)


def test_the_table_of_costs() -> None:
    rows = [measured("teacher", 2.0), measured("student", 0.8), measured("elsewhere", 0.1, "another"), Row("quoted")]
    lines = cost_table(rows)
    assert [line[0] for line in lines] == ["cost of an image", "teacher", "student", "elsewhere"]
    assert lines[1][3:6] == ["2", "2", ""] and lines[2][3:6] == ["0.8", "2", "2.50"] and lines[3][5] == ""
    said = cost_remarks(rows)[0]
    assert "on a card, bf16 and on another, bf16" in said and "Speed-ups are over teacher" in said
    assert cost_table([Row("quoted")]) == [] and cost_remarks([Row("quoted")]) == []


def test_a_speed_is_compared_with_the_own_teacher() -> None:
    rows = [measured("teacher of 1", 2.0), measured("teacher of 2", 1.0)]
    rows += [replace(measured(f"{each}", 0.5), teacher=f"teacher of {each}") for each in (1, 2)]
    assert [line[5] for line in cost_table(rows)[1:]] == ["", "", "4.00", "2.00"]
    assert "Speed-ups are over teacher of 1 or teacher of 2." in cost_remarks(rows)[0]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("demo", ["teacher"]),
        ("table1", ["teacher"]),
        ("beyond-unet", ["teacher of 1 U-Net, without", "teacher of 3 transformer, without"]),
    ],
)
def test_each_teacher_of_a_table_has_a_row(table: str, expected: list[str]) -> None:
    configs = {name: run.config for name, run in next(iter(load_runs(table).values())).items()}
    assert [name for name, _ in teacher_rows(load_table(table), configs).values()] == expected


def test_each_teacher_of_the_transformers_has_a_row() -> None:
    configs = {name: run.config for name, run in load_runs("transformers")[""].items()}
    found = teacher_rows(load_table("transformers"), configs)
    assert len(found) == len({config.paths.reference for config in configs.values()}) == 4
