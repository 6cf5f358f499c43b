"""Odd JSON files: the wrong kind of value, cut off, nested without end; headers of weights; lines of metrics."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from randcond.data.cache.latent_cache import LatentCache
from randcond.data.captions.pool import build, check_pool_identity, open_pool, take
from randcond.eval.images.generate import load_features, load_shown
from randcond.eval.scores.statistics import read_statistics, write_statistics
from randcond.eval.tables.collect import Row, _best
from randcond.launch.config.experiments import load_config
from randcond.launch.config.paths import resolve_path
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import read_record, sha256, write_text
from randcond.launch.runtime.json_lines import lines_up_to, whole_lines
from randcond.model_zoo.checkpoints.stored_tensors import StoredTensors
from randcond.model_zoo.export import load_pipeline
from randcond.model_zoo.teacher import Teacher
from randcond.train.engine import STATE_KINDS
from randcond.train.setup import is_finished
from randcond.train.state import checkpoint
from randcond.train.state.model_card import model_card

BAD: dict[str, tuple[bytes, str]] = {
    "list": (b"[]", "damaged JSON .expected an object, found list"),
    "null": (b"null", "damaged JSON .expected an object, found NoneType"),
    "text": (b'"x"', "damaged JSON .expected an object, found str"),
    "cut off": (b'{"a": 1', "damaged JSON"),
    "empty": (b"", "damaged JSON"),
    "nested": (b'{"a":' * 100_000, "damaged JSON .it is nested too deeply"),
    "Latin-1": (b'{"\xe9": 1}', "damaged JSON .*codec"),
    "digits": (b'{"a": ' + b"1" * 5000 + b"}", "damaged JSON .*4300"),
}


@pytest.mark.parametrize("case", BAD)
def test_json_of_the_wrong_kind_is_named(case: str, tmp_path: Path) -> None:
    content, message = BAD[case]
    path = tmp_path / "facts.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"facts\.json: {message}.*; restore it from a copy, or remove it"):
        read_record(path)


def a_pool(folder: Path) -> Path:
    (folder / "a.txt").write_text("one\ntwo\n")
    build(folder / "pool", [str(folder / "a.txt")])
    return folder / "pool/manifest.json"


def a_cache(folder: Path) -> Path:
    path = folder / "cache/manifest.json"
    write_text(path, "{}")
    return path


TEACHER = resolve_path("package:data/digits/models/teacher")


def a_run(name: str) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        for kind in ("student", "student_ema"):
            (folder / "run" / kind).mkdir(parents=True, exist_ok=True)
        (folder / "run" / name).parent.mkdir(exist_ok=True)
        return folder / "run" / name

    return made


def config_of(folder: Path) -> Any:
    places = [f"paths.{name}={folder / name}" for name in ("run", "cache", "pool")]
    return load_config("demo-with", places)


def row_of(folder: Path) -> Row:
    return Row("ours", run=folder / "run")


# file -> what makes a folder with it, what reads it
READERS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], object]]] = {
    "a pool's manifest": (a_pool, lambda f: open_pool(f / "pool")),
    "a pool's manifest, built again": (a_pool, lambda f: build(f / "pool", [str(f / "a.txt")])),
    "a pool's manifest, for its identity": (a_pool, lambda f: check_pool_identity(config_of(f))),
    "a pool's manifest, for a part": (a_pool, lambda f: take(f / "pool", f / "part", 1, 0)),
    "a cache's manifest": (a_cache, lambda f: LatentCache.open(config_of(f), "teacher")),
    "train.json": (a_run("train.json"), lambda f: is_finished(config_of(f), {})),
    "best.json": (a_run("best.json"), lambda f: _best(row_of(f), config_of(f))),
    "scores.json": (
        a_run("eval-ema/scores.json"),
        lambda f: model_card(config_of(f), "ema", 1, TEACHER, student=TEACHER),
    ),
}


@pytest.mark.parametrize("content", [b"[]", b"{}", b'{"a":' * 100_000, b'{"\xe9": 1}'], ids=["list", "{}", "deep", "é"])
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_names_its_file(reader: str, content: bytes, tmp_path: Path) -> None:
    make, read = READERS[reader]
    path = make(tmp_path)
    path.write_bytes(content)
    if reader.endswith("for its identity") and content == b"{}":
        return  # a pool that was built by hand has no identity
    with pytest.raises(UserError, match=path.name.replace(".", r"\.") + r"|pool at .* has format None|no key"):
        read(tmp_path)


PARTS = [
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/tokenizer.json",
]


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    return Path(shutil.copytree(resolve_path("package:data/digits/models/teacher"), tmp_path / "teacher"))


@pytest.mark.parametrize("part", PARTS)
def test_broken_json_of_a_pipeline_is_named(part: str, pipeline: Path) -> None:
    good = (pipeline / part).read_bytes()
    for content, message in BAD.values():
        (pipeline / part).write_bytes(content)
        for load in (Teacher.load, load_pipeline):
            with pytest.raises(UserError, match=rf"{part}: {message}.*; download or copy it again"):
                load(pipeline)
    (pipeline / part).write_bytes(good)


# id -> part, change of its content
WRONG_VALUES: dict[str, tuple[str, dict[str, Any]]] = {
    "a text as a size": ("unet/config.json", {"sample_size": "large"}),
    "a list of blocks that is a number": ("unet/config.json", {"down_block_types": 4}),
    "an unknown block": ("unet/config.json", {"down_block_types": ["Unknown"] * 2}),
    "a list as a class": ("model_index.json", {"unet": 7}),
    "a schedule of text": ("scheduler/scheduler_config.json", {"num_train_timesteps": "many"}),
    "a number as the class name": ("model_index.json", {"_class_name": 7}),
    "a list as the class name": ("model_index.json", {"_class_name": ["StableDiffusionPipeline"]}),
}


@pytest.mark.parametrize("case", WRONG_VALUES)
def test_a_value_of_another_type_in_a_pipeline_names_the_folder(case: str, pipeline: Path) -> None:
    part, change = WRONG_VALUES[case]
    facts = json.loads((pipeline / part).read_text())
    (pipeline / part).write_text(json.dumps({**facts, **change}))
    with pytest.raises(UserError, match=f"{pipeline}"):
        Teacher.load(pipeline)


def with_header(path: Path, header: bytes) -> None:
    """Writes a safetensors file with this header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))


HEADERS = {
    "a surrogate in its metadata": b'{"__metadata__": {"a": "\\ud800"}}',
    "a list": b"[]",
    "a tensor beyond its end": b'{"a": {"dtype": "F32", "shape": [999999], "data_offsets": [0, 3999996]}}',
    "no UTF-8": b'{"\xff": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
    "deep nesting": b'{"a":' * 10_000,
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_broken_header_of_weights_is_named(case: str, pipeline: Path, tmp_path: Path) -> None:
    weights = pipeline / "unet/diffusion_pytorch_model.safetensors"
    with_header(weights, HEADERS[case])
    with pytest.raises(UserError, match=r"unet/diffusion_pytorch_model\.safetensors: damaged"):
        Teacher.load(pipeline)
    with pytest.raises(UserError, match=r"diffusion_pytorch_model\.safetensors: damaged"):
        StoredTensors(pipeline / "unet")
    chunk = tmp_path / "chunk-00000.safetensors"
    with_header(chunk, HEADERS[case])
    for read in (lambda: load_features(tmp_path, 1, 1, "clip"), lambda: load_shown(tmp_path, 1, 1)):
        with pytest.raises(UserError, match=r"chunk-00000\.safetensors: is damaged"):
            read()


def test_broken_statistics_are_named(tmp_path: Path) -> None:
    path = write_statistics(tmp_path, "all", "inception", torch.randn(4, 8), {"extractor": "x"})
    reference = read_statistics(str(tmp_path), "all", "inception", {}, 8)
    arrays = dict(np.load(path))
    for facts in ("[]", "null", '{"images": "many"}', "{", "[" * 100_000):
        np.savez(path, mu=arrays["mu"], sigma=arrays["sigma"], facts=np.array(facts))
        with pytest.raises(UserError, match=r"all\.npz: does not hold FID statistics mu and sigma"):
            read_statistics(str(tmp_path), "all", "inception", {}, 8)
    features = path.with_suffix(".safetensors")
    for damage in (lambda: with_header(features, b"[]"), lambda: save_file({"other": torch.zeros(1)}, features)):
        damage()
        reference.facts["features_sha256"] = sha256(features)[:16]
        with pytest.raises(UserError, match=r"all\.safetensors: damaged, or not the features of real images"):
            reference.features()


def test_a_checkpoint_with_broken_json_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its checksum fits, as after an edit by hand. The run resumes from the one before."""
    writer = checkpoint.Writer(tmp_path, 0, 1, 3)
    for step in (1, 2):
        state = {kind: {"a@0": torch.zeros(10)} for kind in STATE_KINDS}
        writer.save(step, state, {"a": (10,)}, {"skipped": 0})
        writer.wait()
    manifest = tmp_path / "step-00000002/manifest.json"
    for content, _ in BAD.values():
        manifest.write_bytes(content)
        manifest.with_suffix(".sha256").write_text(sha256(manifest))
        found = checkpoint.newest_valid(tmp_path)
        assert found and found.path.name == "step-00000001"
        assert f"checkpoint {manifest.parent} is damaged" in capsys.readouterr().out
        with pytest.raises(UserError, match=r"step-00000002/manifest\.json: damaged JSON"):
            checkpoint.StoredCheckpoint(manifest.parent)
    with_header(tmp_path / "step-00000001/rank-0000.safetensors", HEADERS["a list"])
    with pytest.raises(UserError, match=r"rank-0000\.safetensors: damaged .*; rename this checkpoint's folder"):
        checkpoint.StoredCheckpoint(tmp_path / "step-00000001").read("weights", "a", 0, 10)


LINES: dict[str, tuple[bytes, str | list[int]]] = {
    "whole": (b'{"step": 1}\n{"step": 2}\n', [1, 2]),
    "no file end": (b'{"step": 1}\n{"step": 2}', [1, 2]),
    "cut off": (b'{"step": 1}\n{"st', [1]),
    "zeros at the end": (b'{"step": 1}\n' + bytes(100), [1]),
    "a cut line in the middle": (
        b'{"step": 1}\n{"st\n{"step": 3}\n',
        r"metrics\.jsonl, line 2: damaged .*; remove the line",
    ),
    "a list in the middle": (
        b'{"step": 1}\n[]\n{"step": 3}\n',
        r"metrics\.jsonl, line 2: damaged \(expected an object",
    ),
    "no step in the middle": (b'{"a": 1}\n{"step": 3}\n', r"metrics\.jsonl, line 1: damaged"),
    "no UTF-8 in the middle": (b'{"step": 1, "\xff": 1}\n{"step": 3}\n', r"metrics\.jsonl, line 1: damaged"),
    "deep nesting in the middle": (b'{"a":' * 100_000 + b'\n{"step": 3}\n', r"metrics\.jsonl, line 1: damaged"),
}


@pytest.mark.parametrize("case", LINES)
def test_lines_of_metrics_are_read_or_named(case: str, tmp_path: Path) -> None:
    content, outcome = LINES[case]
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    if isinstance(outcome, str):
        with pytest.raises(UserError, match=outcome):
            lines_up_to(path, 10)
        assert path.read_bytes() == content  # no line is lost
    else:
        assert [data["step"] for _, data in whole_lines(path)] == outcome
        assert [data["step"] for _, data in whole_lines(lines_up_to(path, 1))] == [1]
