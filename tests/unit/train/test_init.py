"""`randcond init` writes an experiment that loads, fits the device and the hours, and explains every line."""

import json
import os
import pty
import re
import select
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from randcond.launch.config.experiments import load_config
from randcond.launch.config.gpus import find_gpu
from randcond.launch.device.drawing import grid_memory, largest_batch
from randcond.launch.errors import UserError
from randcond.launch.planning.costs import Cluster, counted
from randcond.launch.planning.fitting import USABLE, changed, training_memory
from randcond.train.tools.init_command import init
from randcond.train.tools.own_experiment import Choice
from randcond.train.tools.own_yaml import Own, draft, final

TEACHER = Path(__file__).parents[3] / "data/digits/models/teacher"
CAPTIONS = Path(__file__).parents[3] / "data/digits/captions.txt"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(file: str = "mine.yaml", **flags: str | int) -> None:
    init(file, **{"teacher": str(TEACHER), "captions": str(CAPTIONS), **flags})  # type: ignore[arg-type]


@pytest.mark.heavy
def test_every_line_is_explained_and_the_file_loads(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(gpu="rtx4090", hours="2")
    text = (folder / "mine.yaml").read_text()
    for line in filter(str.strip, text.splitlines()):
        key = line.strip()
        assert key.startswith("#") or "#" in key or key.endswith(":"), line
    config = load_config("mine.yaml")
    assert (config.cache.batch, config.eval.batch, config.engine.micro_batch) == (None, None, None)
    assert config.teacher.dtype == config.engine.precision == "bf16"
    assert 16 <= config.train.global_batch <= config.cache.size <= 3200 and config.train.steps >= 100
    assert "predicted on one rtx4090: " in text and " GB of memory" in text and " GB on disk" in text
    assert "next: randcond run all mine.yaml" in capsys.readouterr().out


@pytest.mark.heavy
def test_the_schema_beside_it_knows_every_key(folder: Path) -> None:
    write(gpu="rtx4090", hours="2")
    first = (folder / "mine.yaml").read_text().splitlines()[0]
    schema = json.loads((folder / first.rpartition("=")[2]).read_text())
    data = yaml.safe_load((folder / "mine.yaml").read_text())
    for section, keys in data.items():
        known = schema["properties"][section]
        definition = schema["$defs"][known["$ref"].rpartition("/")[2]] if "$ref" in known else known
        assert set(keys) <= set(definition["properties"]), section


@pytest.mark.parametrize(("hours", "longer"), [("0.01", "0.04"), ("0.02", "0.08")])
def test_more_hours_give_more_of_everything(hours: str, longer: str, folder: Path) -> None:
    write("one.yaml", gpu="rtx4090", hours=hours)
    write("two.yaml", gpu="rtx4090", hours=longer)
    one, two = load_config("one.yaml"), load_config("two.yaml")
    samples = [config.train.steps * config.train.global_batch for config in (one, two)]
    assert 3 < samples[1] / samples[0] < 5
    assert two.cache.size >= one.cache.size


@pytest.mark.parametrize("hours", ["0.003", "0.05", "2", "48"])
def test_the_hours_are_kept(hours: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With few captions the training ends before, and says so."""
    write(gpu="rtx4090", hours=hours)
    predicted = float(re.search(r"([0-9.e-]+) hours,", (folder / "mine.yaml").read_text())[1])  # type: ignore[index]
    assert predicted <= float(hours)
    said = capsys.readouterr().out
    config = load_config("mine.yaml")
    passes = config.train.steps * config.train.global_batch / config.cache.size
    assert ("with more captions it makes use of more hours" in said) == (float(hours) > 1) == (passes > 9000)
    assert passes <= 10_000


def test_a_try_has_the_fewest_steps_of_the_smallest_batch(folder: Path) -> None:
    write("try.yaml", gpu="rtx4090", hours="fewest")
    config = load_config(str(folder / "try.yaml"))
    assert config.train.global_batch == 16 and 100 <= config.train.steps <= 125 and config.cache.size >= 16
    assert 0 < config.train.sample_every <= config.train.steps and "runs/try/" in config.paths.run


def test_the_hours_that_a_message_asks_for_are_enough(folder: Path) -> None:
    with pytest.raises(UserError, match="give at least ") as raised:
        write(gpu="rtx4090", hours="0.00001")
    write(gpu="rtx4090", hours=str(raised.value).rpartition(" ")[2])
    assert load_config("mine.yaml").train.steps >= 100


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"teacher": ""}, "--teacher is missing; see `randcond init --help`"),
        ({"captions": ""}, "--captions is missing"),
        ({"hours": "many"}, "--hours: expected a number above 0, or fewest; got 'many'"),
        ({"hours": "-1"}, "--hours: expected a number above 0"),
        ({"hours": "nan"}, "--hours: expected a number above 0"),
        ({"hours": "0.0001", "gpu": "rtx4090"}, "--hours: in 0.0001 hours this device makes only .*; give at least"),
        ({"gpu": "rtx9999"}, "--gpu: unknown 'rtx9999'"),
        ({"captions": "none.txt"}, "--captions: there is no none.txt"),
        ({"gpu": "11GB"}, "--gpu: 11GB is half of it: give memory and bf16 speed"),
        ({"teacher": "nowhere/model/x"}, "nowhere/model/x"),
        ({"student": "huge"}, "student.rule: unknown student 'huge'"),
        ({"file": "mine.txt"}, r"mine\.txt: must end with \.yaml"),
        ({"gpu": "1GB,5TFLOPS"}, "does not fit the 1 GB of .*choose a smaller student"),
    ],
)
def test_what_is_wrong_is_one_line_and_writes_nothing(flags: dict[str, str], said: str, folder: Path) -> None:
    with pytest.raises(UserError, match=said):
        write(**flags)
    assert not list(folder.iterdir())


def test_too_few_captions_and_a_single_file_are_said(folder: Path) -> None:
    (folder / "few.txt").write_text("one\ntwo\n")
    with pytest.raises(UserError, match="--captions: only 2 captions; give at least 16"):
        write(captions="few.txt", gpu="rtx4090")
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"`randcond teacher import model\.safetensors model`"):
        write(teacher="model.safetensors", gpu="rtx4090")


def test_any_number_of_captions_is_drawn_in_large_batches(folder: Path) -> None:
    captions = list(dict.fromkeys(CAPTIONS.read_text().splitlines()))[:997]  # a prime
    (folder / "captions.txt").write_text("\n".join(captions))
    write(captions="captions.txt", gpu="h200", hours="2")
    config = load_config("mine.yaml")
    assert (config.cache.size, config.cache.shard_size) == (997, 1024)
    assert largest_batch(config, counted(config), Cluster(find_gpu("h200"), 1, 1), "cache") == 64


def test_pictures_that_would_not_fit_beside_the_training_are_left_out(folder: Path) -> None:
    write(gpu="rtx4090", hours="2")
    config, cluster = load_config("mine.yaml"), Cluster(find_gpu("11GB,27TFLOPS"), 1, 1)
    assert config.train.sample_every > 0
    small = changed(config, {"engine.micro_batch": 1})
    step = sum(training_memory(small, counted(small), cluster).values())
    grid = grid_memory(small, counted(small), cluster)
    assert grid > step
    write("small.yaml", gpu=f"{(step + grid) / 2e9 / USABLE:.4f}GB,27TFLOPS", hours="2")
    assert load_config("small.yaml").train.sample_every == 0
    assert "they would not fit beside the training" in (folder / "small.yaml").read_text()


@pytest.mark.parametrize("name", ["my #1.yaml", "a: b.yml", "Größe 🐈.yaml", "sub/mine.yaml"])
def test_any_name_of_a_file_will_do(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "é 🐈.txt").write_text(CAPTIONS.read_text())
    write(name, gpu="rtx4090", hours="2", captions="é 🐈.txt")
    config = load_config(name)
    assert config.paths.run == f"runs/{Path(name).stem}/run" and config.cache.captions == ["é 🐈.txt"]
    command = capsys.readouterr().out.rpartition("next: ")[2]
    assert shlex.split(command) == ["randcond", "run", "all", name]
    assert f"`{command.strip()}`" in (folder / name).read_text()


def test_a_caption_file_may_have_the_signs_of_a_glob_in_its_name(folder: Path) -> None:
    (folder / "all [my] captions.txt").write_text(CAPTIONS.read_text())
    write(gpu="rtx4090", hours="2", captions="all [my] captions.txt")
    assert load_config("mine.yaml").cache.captions == ["all [my] captions.txt"]


def test_a_file_that_exists_is_kept(folder: Path) -> None:
    (folder / "mine.yaml").write_text("kept\n")
    with pytest.raises(UserError, match=r"mine\.yaml: exists already; .*--force"):
        write(gpu="rtx4090")
    assert (folder / "mine.yaml").read_text() == "kept\n"
    (folder / "folder.yaml").mkdir()
    with pytest.raises(UserError, match=r"folder\.yaml: is a folder"):
        init("folder.yaml", teacher=str(TEACHER), captions=str(CAPTIONS), gpu="rtx4090", force=True)
    assert (folder / "folder.yaml").is_dir()


@pytest.mark.heavy
def test_on_a_terminal_it_asks(folder: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "randcond.launch.cli", "init", "--gpu", "rtx4090", "--hours", "2"]
    with subprocess.Popen(command, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        text = ""
        for question, answer in (("The model to distil", str(TEACHER)), ("Caption files", str(CAPTIONS))):
            while question not in text:
                assert select.select([ours], [], [], 300)[0], text
                text += os.read(ours, 4096).decode()
            os.write(ours, answer.encode() + b"\n")
        assert process.wait(300) == 0, text
    os.close(ours)
    assert (folder / "mine.yaml").is_file()


def test_whatever_saves_memory_stands_in_the_file(folder: Path) -> None:
    """The planner may propose any of these for a teacher whose text encoders are large."""
    savers = {
        "teacher.dtype": "int8",
        "teacher.text_dtype": "int8",
        "teacher.text_device": "cpu",
        "train.optimizer": "adamw_8bit",
        "engine.activation_checkpointing": True,
    }
    own, file = Own(str(TEACHER), [str(CAPTIONS)], "block-base", "bf16"), folder / "mine.yaml"
    file.write_text(draft(own, file))
    choice = Choice(load_config("mine.yaml"), savers, False, [], 1.0)
    file.write_text(final(own, file, choice, "card"))
    config = load_config("mine.yaml")
    for key, value in savers.items():
        section, name = key.split(".")
        assert getattr(getattr(config, section), name) == value, key


@pytest.mark.heavy
def test_the_images_size_can_be_chosen(folder: Path) -> None:
    flow = str(TEACHER.with_name("flow-teacher"))
    write(gpu="rtx4090", hours="1", teacher=flow, size=64)
    config = load_config("mine.yaml")
    assert config.cache.resolution == config.eval.resolution == 64
    write("own.yaml", gpu="rtx4090", hours="1", teacher=flow)
    assert load_config("own.yaml").cache.resolution is None
    with pytest.raises(UserError, match="--size: is 30, expected a multiple of 8: a latent has one position for each"):
        write("odd.yaml", gpu="rtx4090", teacher=flow, size=30)


def test_too_few_hours_are_told_in_plain_numbers(folder: Path) -> None:
    with pytest.raises(UserError, match=r"give at least [0-9.]+$"):
        write(gpu="8GB,0.0001TFLOPS", hours="1")
