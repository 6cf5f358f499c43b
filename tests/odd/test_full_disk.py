"""A full disk: every writer names the file in one line, ends with exit code 2, and leaves what was there unchanged.

Each case writes on a real file system of 4 MB (tmpfs), in a process with mounts of its own.
"""

import subprocess
from pathlib import Path

import pytest

from tests.support import warm

PREPARE = """
import ctypes, os, subprocess, sys, types
from pathlib import Path
import torch
from randcond.launch.runtime.exit_codes import report_error
from randcond.launch.runtime.logs import start_console
from randcond.launch.runtime.files import write_json, write_text
start_console()
folder = Path(sys.argv[1])
NEW_MOUNTS = 0x20000
assert ctypes.CDLL(None, use_errno=True).unshare(NEW_MOUNTS) == 0
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "small", str(folder)], check=True)
def fill():  # until not one more page fits
    with (folder / "ballast").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(65536)):
                pass
        except OSError:
            pass
def contents():
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
"""
RUN = """
before = contents()
try:
    work()
except BaseException as error:
    code = report_error(error)
else:
    code = 0
after = contents()
changed = [path.name for path, data in before.items() if after.get(path) != data]
new = [str(path.relative_to(folder)) for path in after if path not in before]
print(f"changed: {changed}, new: {new}")
sys.exit(code)
"""

# id -> code that defines work(), the file that the message names, the new files that stay
CASES = {
    "checkpoint": (
        """
from randcond.train.engine import STATE_KINDS
from randcond.train.state import checkpoint
writer = checkpoint.Writer(folder, 0, 1, 3)
state = {kind: {"a@0": torch.zeros(100_000)} for kind in STATE_KINDS}
def save(step):
    writer.save(step, state, {"a": (100_000,)}, {"skipped": 0})
    writer.wait()
save(1), save(2)
def work():
    try:
        save(3)
    finally:
        assert checkpoint.newest_valid(folder).path.name == "step-00000002"
""",
        "step-00000003",
        [],
    ),
    "checkpoint's manifest": (
        """
from randcond.train.engine import STATE_KINDS
from randcond.train.state import checkpoint
writer = checkpoint.Writer(folder, 0, 1, 3)
state = {kind: {"a@0": torch.zeros(10)} for kind in STATE_KINDS}
def work():
    writer.save(1, state, {"a": (10,)}, {"skipped": 0, "identity": "x" * 5_000_000})
    writer.wait()
""",
        ".step-00000001.part/manifest.json",
        [".step-00000001.part/rank-0000.safetensors"],
    ),
    "features of an evaluation": (
        """
from randcond.eval.images import generate
from randcond.eval.images.extractor import Extractor
from randcond.launch.config.protocols import protocol_of
from randcond.launch.config.sections import Eval
ev = Eval(save="none")
prompts = types.SimpleNamespace(captions=["a", "b"], shown=lambda count: {})
read = lambda images, captions: {"big": torch.zeros(2, 1_000_000)}
task = generate.Task(prompts, protocol_of(Eval(protocol="native")), ev, {"x": Extractor("x", 0, read)})
def work():
    drawn = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    generate._read_and_write(task, drawn, [0, 1], folder, 0, folder / "chunk-00000.safetensors")
""",
        "chunk-00000.safetensors",
        [],
    ),
    "images of an evaluation as files": (
        """
from randcond.eval.images import generate
from randcond.launch.config.protocols import protocol_of
from randcond.launch.config.sections import Eval
def work():
    protocol = protocol_of(Eval(protocol="native"))
    generate._save_images(Eval(save="files"), protocol, folder, 0, [0], ["a"], [bytes(5_000_000)])
""",
        "images/000000.png",
        ["images/000000.txt"],
    ),
    "images of an evaluation in a tar": (
        """
from randcond.eval.images import generate
from randcond.launch.config.protocols import protocol_of
from randcond.launch.config.sections import Eval
def work():
    protocol = protocol_of(Eval(protocol="native"))
    generate._save_images(Eval(save="shards"), protocol, folder, 0, [0, 1], ["a", "b"], [bytes(3_000_000)] * 2)
""",
        "images/images-00000.tar",
        [],
    ),
    "statistics": (
        """
from randcond.eval.scores.statistics import write_statistics
def work():
    write_statistics(folder, "all", "inception", torch.randn(4, 1024), {})
""",
        "all.npz",
        ["all.safetensors"],
    ),
    "features of real images": (
        """
from randcond.eval.scores.statistics import write_statistics
def work():
    write_statistics(folder, "all", "inception", torch.randn(10_000, 256), {})
""",
        "all.safetensors",
        [],
    ),
    "shard": (
        """
import numpy as np
from randcond.data.cache.shards import write_shard
def samples(n):
    return [{"caption_id": i, "caption": "a", "latent": np.zeros((4, 128, 128)), "meta": {}} for i in range(n)]
write_shard(folder / "latents-00000.tar", samples(2))
def work():
    write_shard(folder / "latents-00001.tar", samples(40))
""",
        "latents-00001.tar",
        [],
    ),
    "captions of a cache": (
        """
from randcond.data.captions.caption_file import write_captions
write_captions(folder / "captions.arrow", ["as it was"])
def work():
    write_captions(folder / "captions.arrow", [f"{n} " * 20 for n in range(100_000)])
""",
        "captions.arrow",
        [],
    ),
    "pool": (
        """
from randcond.data.captions.pool import build
source = Path("captions.txt")
source.write_text("".join(f"caption {n} of many, and none like another\\n" for n in range(100_000)))
def work():
    build(folder / "pool", [str(source)])
""",
        "pool/parts/00000.arrow",
        ["pool/.lock", "pool/plan.json"],
    ),
    "report": (
        """
from randcond.eval.report.records import Report
from randcond.eval.report.report import write_report
(folder / "report.md").write_text("an older report")
def work():
    write_report(Report(folder, "title", "claim " * 1_000_000, [], {}, []))
""",
        "report.md",
        [],
    ),
    "contact sheet": (
        """
from randcond.data.contact_sheet import draw_comparison
def work():
    noise = torch.randint(0, 256, (3, 192, 192), dtype=torch.uint8)
    images = {n: torch.randint(0, 256, (3, 192, 192), dtype=torch.uint8) for n in range(100)}
    draw_comparison(folder / "sheet.png", ["a"] * 100, {"all": range(100)}, {"student": images})
""",
        "sheet.png",
        [],
    ),
    "exported student": (
        """
from randcond.launch.config.paths import resolve_path
from randcond.launch.runtime.files import atomic_write
from randcond.model_zoo.export import export_student, load_denoiser
teacher = resolve_path("package:data/digits/models/teacher")
unet = load_denoiser(teacher / "unet", torch.float32)
def work():
    with atomic_write(folder / "student") as temporary:
        export_student(temporary, unet, teacher, "card")
""",
        "student",
        [],
    ),
    "copied export": (
        """
from randcond.launch.config.paths import resolve_path
from randcond.launch.runtime.files import atomic_write
from randcond.model_zoo.export import copy_student
def work():
    with atomic_write(folder / "export") as temporary:
        copy_student(temporary, resolve_path("package:data/digits/models/teacher"), "card", torch.float16)
""",
        "export",
        [],
    ),
    "manifest": (
        """
write_json(folder / "manifest.json", {"old": True})
fill()
def work():
    write_json(folder / "manifest.json", {"new": list(range(1000))})
""",
        "manifest.json",
        [],
    ),
    "configuration beside an artefact": (
        """
from randcond.launch.config.experiments import load_config
from randcond.launch.runtime.artefacts import write_config
config = load_config("demo-with")
(folder / "config.yaml").write_text("name: old")
fill()
def work():
    write_config(folder, config)
""",
        "config.yaml",
        [],
    ),
    "log of the samples": (
        """
from randcond.train.watch.sample_log import COLUMNS, SampleLog
log = SampleLog(folder, 0, True)
batch = types.SimpleNamespace(**{name: torch.zeros(100_000, dtype=torch.long) for name in COLUMNS})
fill()
def work():
    log.add(1, batch)
""",
        "samples/rank-0000.jsonl",
        [],
    ),
}


@pytest.fixture(scope="module", autouse=True)
def mounts() -> None:
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("mounting a small file system takes root, and no chroot")


@pytest.mark.parametrize("case", CASES)
def test_a_full_disk_is_one_line_with_the_path_and_nothing_is_lost(case: str, tmp_path: Path) -> None:
    code, named, stays = CASES[case]
    (tmp_path / "small").mkdir()
    done = warm.run_code(PREPARE + code + RUN, str(tmp_path / "small"), folder=tmp_path)
    assert done.returncode == 2, done
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"error: {tmp_path / 'small' / named}: can't be written (No space left on device); free")
    assert f"changed: [], new: {stays}" in done.stdout
