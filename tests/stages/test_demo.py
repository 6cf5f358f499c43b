"""Tests of every stage on the embedded world with two ranks: artefacts, resuming, engines, exports."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

from randcond.launch.config.paths import PACKAGE
from randcond.launch.errors import UserError
from randcond.model_zoo.export import denoiser_weights, load_denoiser, load_pipeline, trained_student
from randcond.model_zoo.networks import denoiser_of
from randcond.model_zoo.students.registry import student_of
from randcond.model_zoo.teacher import Teacher
from randcond.train.state.checkpoint import StoredCheckpoint, newest_valid
from tests.support import shaped, warm
from tests.support.demo import TINY, randcond
from tests.support.drawing import draw_elsewhere, draw_here
from tests.support.interruptions import ranks, wait_for, wait_until_gone
from tests.support.runs import difference, metrics, same_bits, weights
from tests.support.web import free_port
from tests.unit.eval.test_report import loads


def newest(run: Path) -> StoredCheckpoint:
    """Returns the newest checkpoint of a run. Fails the test if there is none."""
    return newest_valid(run / "checkpoints") or pytest.fail(f"{run} has no checkpoint")


def test_the_report_holds_every_arm(world: Path) -> None:
    report = json.loads((world / "runs/demo/report.json").read_text())
    assert list(report["arms"]) == ["teacher", "without", "with"]
    for arm in report["arms"].values():
        for score in ("digit_accuracy", "colour_accuracy", "background_accuracy", "frechet_judge"):
            assert set(arm[score]) == {"seen", "unseen", "all"}
        assert sum(arm["digits_drawn"]["unseen"].values()) == 16
        assert arm["protocol"]["guidance"] == 3.0
    assert report["arms"]["with"]["steps"] == 12 and report["arms"]["with"]["seconds"] > 0
    assert report["arms"]["teacher"]["digit_accuracy"]["seen"] > 0.5  # although it samples with only five steps
    text = (world / "runs/demo/report.md").read_text()
    page = (world / "runs/demo/report.html").read_text()
    assert "asked for three" in text and "| teacher |" in text
    assert "data:image/png;base64," in page
    assert loads(page) == [] and page.count("<svg") == 4  # the loss and the gradient norm, over steps and over hours
    assert (world / "runs/demo/contact_sheet.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["", "deepspeed", "torchrun"])
def test_the_command_line_and_the_launchers_make_the_same_student(launcher: str, world: Path) -> None:
    """The fixture `world` runs the stages in warm processes instead (tests/support/warm.py)."""
    run = f"runs/launched-{launcher}"
    words = [*TINY, "train.sample_every=6", f"paths.run={run}"]  # a grid changes nothing after it
    flags = ["--launcher", launcher] if launcher else []
    said = randcond(world, "run", "train", "demo-with", *words, *flags, launcher=True).stdout
    assert "[1/2] check" in said and "[2/2] train demo-with" in said
    assert same_bits(world / run, world / "runs/demo/with")
    assert (world / run / "student_ema/unet").is_dir()


@pytest.mark.slow
def test_the_command_line_runs_the_whole_road(world: Path, tmp_path: Path) -> None:
    said = randcond(tmp_path, "run", "all", "demo-with", *TINY, launcher=True).stdout
    assert "[1/6] check" in said and "[6/6] report demo-with" in said
    assert same_bits(tmp_path / "runs/demo/with", world / "runs/demo/with")


def test_a_finished_run_is_left_alone(world: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (world / "runs/demo/with").rglob("*.safetensors")}
    said = randcond(world, "run", "train", "demo-with", *TINY).stdout
    assert re.search(r"training: all \d+ steps are done; the student is at runs/demo/with/student_ema", said)
    assert before == {path: path.stat().st_mtime_ns for path in (world / "runs/demo/with").rglob("*.safetensors")}


def test_the_cache_is_the_same_on_one_rank_and_two_and_after_a_kill(world: Path) -> None:
    """Three caches have the same bytes: of two ranks, of one preempted rank, of two ranks with one of them killed."""
    command = ["run", "cache", "demo-with", *TINY]
    words = ["cache", "demo-with", *TINY, "paths.cache=runs/cache-one"]
    process = warm.Process(warm.Command("randcond.data", words, world))
    wait_for(lambda: any((world / "runs/cache-one").glob("latents-*.tar")), process)
    process.send_signal(signal.SIGUSR1)
    assert process.wait() == 75 and not (world / "runs/cache-one/manifest.json").exists()
    randcond(world, *command, "paths.cache=runs/cache-one", "--gpus", "1")
    again = [*command, "paths.cache=runs/cache-killed"]
    process = warm.Process(warm.Command("randcond.launch.cli", again, world))
    wait_for(lambda: any((world / "runs/cache-killed").glob("latents-*.tar")), process)
    ranks(process)[1].kill()
    # The kill comes before the cache is complete. The other rank may still complete it.
    assert not (world / "runs/cache-killed/manifest.json").exists()
    assert process.wait() != 0
    randcond(world, *command, "paths.cache=runs/cache-killed")
    for path in sorted((world / "runs/demo/cache").glob("latents-*")):
        for other in ("cache-one", "cache-killed"):
            assert path.read_bytes() == (world / "runs" / other / path.name).read_bytes(), (other, path.name)


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_nothing_outlives_a_killed_command(count: int, world: Path) -> None:
    """One rank is a child of the command; two are those of the launcher."""
    run = f"runs/orphans-{count}"
    words = ["run", "train", "demo-with", *TINY, "train.steps=500", f"paths.run={run}", "--gpus", str(count)]
    process = warm.Process(warm.Command("randcond.launch.cli", words, world))
    wait_for(lambda: (world / run / "checkpoints").is_dir(), process)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(ranks(process)) == count
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_until_gone(children)


def test_two_ranks_and_one_train_the_same_student(world: Path) -> None:
    randcond(world, "run", "train", "demo-with", "--gpus", "1", *TINY, "paths.run=runs/alone")
    both = metrics(world / "runs/demo/with")[-1]
    alone = metrics(world / "runs/alone")[-1]
    for name in ("loss/total", "loss/output", "loss/feature", "grad_norm"):
        assert alone[name] == pytest.approx(both[name], rel=1e-4)
    assert alone["replaced_share"] == both["replaced_share"]


BF16 = ["engine.precision=bf16", "engine.micro_batch=4", "train.steps=8", "train.sample_every=0"]


@pytest.fixture(scope="module")
def bf16(world: Path) -> Path:
    """Trains in bf16 with gradient accumulation. Returns the run."""
    randcond(world, "run", "train", "demo-with", *TINY, *BF16, "paths.run=runs/bf16")
    return world / "runs/bf16"


def test_bf16_with_accumulation_follows_fp32(world: Path, bf16: Path) -> None:
    ours, theirs = metrics(bf16), metrics(world / "runs/demo/with")
    assert [line["step"] for line in ours] == [2, 4, 6, 8]
    for mine, its in zip(ours, theirs[: len(ours)], strict=True):
        assert mine["loss/total"] == pytest.approx(its["loss/total"], rel=0.05)
    assert all(tensor.dtype == torch.float32 for tensor in weights(bf16).values())


def test_bf16_resumes_bit_by_bit(world: Path, bf16: Path) -> None:
    """A run that stops at step 4 and resumes restores fp32 master weights, moments and EMA."""
    words = ["demo-with", *TINY, *BF16, "paths.run=runs/bf16-cut"]
    randcond(world, "run", "train", *words, "train.steps=4")
    said = randcond(world, "run", "train", *words).stdout
    assert "resuming from step 4" in said
    assert same_bits(bf16, world / "runs/bf16-cut")


def test_a_run_goes_on_under_another_engine_and_world_size(world: Path) -> None:
    """ZeRO-1 on two ranks, FSDP2 on one, ZeRO-3 on two: checkpoints depend on neither engine nor world size."""
    words = [*TINY, "paths.run=runs/moving", "train.sample_every=0"]
    randcond(world, "run", "train", "demo-with", *words, "train.steps=4")
    said = randcond(
        world, "run", "train", "demo-with", *words, "train.steps=8", "engine.kind=fsdp", "--gpus", "1"
    ).stdout
    assert "resuming from step 4" in said
    said = randcond(world, "run", "train", "demo-with", *words, "engine.zero_stage=3").stdout
    assert "resuming from step 8" in said
    for name in ("student", "student_ema"):
        assert difference(world / "runs/demo/with", world / "runs/moving", name) < 1e-4
    lines = metrics(world / "runs/moving")
    reference = metrics(world / "runs/demo/with")
    for ours, theirs in zip(lines, reference, strict=True):
        assert ours["loss/total"] == pytest.approx(theirs["loss/total"], rel=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        [],
        pytest.param(
            ["engine.kind=fsdp", "engine.compile=blocks", "engine.channels_last=true"], marks=pytest.mark.slow
        ),
    ],
)
def test_a_sharded_teacher_teaches_the_same(world: Path, options: list[str]) -> None:
    """A sharded teacher gives the same features and losses, and all ranks draw the sample grid together."""
    run = f"runs/sharded-{len(options)}"
    randcond(
        world,
        "run",
        "train",
        "demo-with",
        *TINY,
        "train.sample_every=12",
        *options,
        "engine.teacher=sharded",
        f"paths.run={run}",
    )
    for ours, theirs in zip(metrics(world / run), metrics(world / "runs/demo/with"), strict=True):
        for term in ("loss/output", "loss/feature", "grad_norm"):
            assert ours[term] == pytest.approx(theirs[term], rel=1e-4), (term, ours["step"])
    assert list((world / run / "tensorboard").iterdir())


def test_a_damaged_shard_is_named_and_drawn_again(world: Path) -> None:
    shutil.copytree(world / "runs/demo/cache", world / "runs/damaged")
    shard = world / "runs/damaged/latents-00001.tar"
    sound = shard.read_bytes()
    shard.write_bytes(sound[:3000] + bytes([sound[3000] ^ 1]) + sound[3001:])
    words = ["demo-with", *TINY, "--gpus", "1", "paths.cache=runs/damaged", "paths.run=runs/on-damaged"]
    said = randcond(world, "run", "train", *words, code=2).stderr
    assert "latents-00001.tar: does not match its checksum" in said
    shard.unlink()
    randcond(world, "run", "cache", *words)
    assert shard.read_bytes() == sound


def test_a_channel_student_trains_with_projectors_and_exports_without(world: Path) -> None:
    words = [*TINY, "student.rule=channel-tiny", "paths.run=runs/channel"]
    shared = set(Path("/dev/shm").glob("deepspeed_*"))
    randcond(world, "run", "train", "demo-with", *words)
    # DeepSpeed's buffers must not outlive their run. Runs of other tests may have some, which disappear within seconds.
    for _ in range(60):
        if not (left := set(Path("/dev/shm").glob("deepspeed_*")) - shared):
            break
        time.sleep(1)
    assert not left
    assert not [key for key in weights(world / "runs/channel") if "projector" in key]
    assert any("projectors" in name for name in newest(world / "runs/channel").shapes)


def test_the_student_draws_in_a_fresh_process_without_us(world: Path) -> None:
    code = (
        "import sys, torch; from diffusers import StableDiffusionPipeline\n"
        "pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1])\n"
        "image = pipe('a red two on a navy background', num_inference_steps=5,\n"
        "             generator=torch.Generator().manual_seed(0)).images[0]\n"
        "assert image.size == (32, 32); image.save(sys.argv[2])\n"
        "assert not [name for name in sys.modules if name.startswith('randcond')]\n"
    )
    folder = world / "runs/demo/with/student_ema"
    subprocess.run([sys.executable, "-c", code, str(folder), str(world / "two.png")], check=True, cwd="/")
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {".json", ".safetensors", ".md", ".txt"}
    assert not [path for path in folder.glob("*/config.json") if "_name_or_path" in path.read_text()]
    assert "| p(t) | exponential (of time); null captions 10% |" in (folder / "README.md").read_text()


@pytest.mark.parametrize("kind", ["raw", "ema"])
def test_the_exported_student_is_the_trained_one_and_draws_the_same(world: Path, kind: str) -> None:
    """Its weights are the last checkpoint's bit for bit. In a fresh process it draws the same.

    Images are compared to rounding: on some processors a product's last bits depend on where a tensor lies in memory.
    """
    run = world / "runs/demo/with"
    teacher = Teacher.load(PACKAGE / "data/digits/models/teacher", "fp32")
    like = student_of("block-base", teacher.architecture).denoiser.blank()
    stored = denoiser_weights(newest(run).full("weights" if kind == "raw" else kind))
    trained = trained_student(like, stored, torch.float32)
    name = "student" if kind == "raw" else "student_ema"
    exported, expected = weights(run, name), trained.state_dict()
    assert exported.keys() == expected.keys()
    assert all(torch.equal(tensor, exported[key]) for key, tensor in expected.items())
    fresh = draw_elsewhere(run / name, world / f"{kind}.npy")
    assert np.allclose(draw_here(teacher.pipeline("teacher", trained)), fresh, atol=1e-4)


def test_a_checkpoint_of_another_architecture_is_named(world: Path) -> None:
    stored = denoiser_weights(newest(world / "runs/demo/with").full("weights"))
    teacher = denoiser_of(PACKAGE / "data/digits/models/teacher")
    other = student_of("channel-base", teacher).denoiser.blank()
    with pytest.raises(UserError, match=r"architecture differs from .* student.rule .* missing, first .*shape"):
        trained_student(other, stored, torch.float32)


def test_export_adds_the_scores_and_another_precision(world: Path) -> None:
    words = ["export", "demo-with", *TINY, "--out", "half", "--dtype", "fp16"]
    assert "exported ema weights in fp16 to half" in randcond(world, *words).stdout
    card = (world / "half/README.md").read_text()
    assert "library_name: diffusers" in card and "| unseen |" in card and "Protocol: protocol native; " in card
    stored = load_file(world / "half/unet/diffusion_pytorch_model.safetensors")
    exact = weights(world / "runs/demo/with", "student_ema")
    assert all(torch.equal(tensor, exact[key].half()) for key, tensor in stored.items())
    refused = randcond(world, *words, code=2).stderr
    assert "half exists already" in refused
    for wrong, said in (
        (["--out", "x", "--weights", "best"], "--weights: must be raw or ema, got 'best'"),
        (["--out", "x", "--push", "me/student"], "HF_TOKEN is not set"),
        (["--out", "x", "paths.run=runs/none"], "no trained student at runs/none/student_ema"),
    ):
        assert said in randcond(world, "export", "demo-with", *TINY, *wrong, code=2).stderr


SDXL = [*TINY, "teacher.path=sdxl-teacher", "student.rule=koala-700m", "student.init=teacher"]
SDXL += ["cache.size=16", "cache.shard_size=16", "cache.steps=2", "paths.cache=runs/sdxl-cache"]
SDXL += ["train.steps=4", "train.losses.task=1.0", "train.sample_every=0", "paths.pool=runs/sdxl-pool"]


@pytest.fixture(scope="module")
def sdxl(world: Path) -> Path:
    """A run with an SDXL teacher by the same stages: pooled embeddings, zeroed null captions, KOALA, task loss."""
    shaped.build("sdxl", world / "sdxl-teacher")
    for stage in ("pool", "cache", "train"):
        randcond(world, "run", stage, "demo-with", *SDXL, "paths.run=runs/sdxl", "--gpus", "1")
    return world / "runs/sdxl"


@pytest.mark.long
def test_sdxl_is_a_teacher_and_a_student_rule_and_no_second_trainer(world: Path, sdxl: Path) -> None:
    assert all(line[f"loss/{term}"] > 0 for line in metrics(sdxl) for term in ("task", "output", "feature"))
    unet = load_denoiser(sdxl / "student/unet", torch.float32)
    drawn = draw_here(Teacher.load(world / "sdxl-teacher", "fp32").pipeline("teacher", unet))
    assert np.allclose(draw_here(load_pipeline(sdxl / "student")), drawn, atol=1e-4)


@pytest.mark.slow
def test_an_sdxl_student_is_the_same_of_two_ranks_and_in_a_fresh_process(world: Path, sdxl: Path) -> None:
    randcond(world, "run", "train", "demo-with", *SDXL, "paths.run=runs/sdxl-2", "engine.micro_batch=4")
    for one, two in zip(metrics(sdxl), metrics(world / "runs/sdxl-2"), strict=True):
        for term in ("loss/total", "loss/task", "loss/output", "loss/feature"):
            assert one[term] == pytest.approx(two[term], rel=1e-4), term
    teacher = Teacher.load(world / "sdxl-teacher", "fp32")
    unet = load_denoiser(world / "runs/sdxl/student/unet", torch.float32)
    fresh = draw_elsewhere(world / "runs/sdxl/student", world / "sdxl.npy", "StableDiffusionXLPipeline")
    assert np.allclose(draw_here(teacher.pipeline("teacher", unet)), fresh, atol=1e-4)


def test_a_slim_student_trains_and_its_loss_falls(world: Path) -> None:
    words = [*TINY, "student.rule=slim-base", "student.init=teacher", "train.steps=40", "train.log_every=10"]
    words += ["train.losses.output=0.0", "train.losses.feature=0.0", "train.losses.task=1.0", "train.lr=2e-3"]
    words += [
        "train.losses.spatial=0.1",
        "train.losses.frequency=0.1",
        "train.checkpoint_every=40",
        "train.sample_every=0",
    ]
    randcond(world, "run", "train", "demo-with", *words, "paths.run=runs/slim", "--gpus", "1")
    lines = metrics(world / "runs/slim")
    for term in ("total", "spatial", "frequency"):
        assert lines[-1][f"loss/{term}"] < 0.7 * lines[0][f"loss/{term}"], term
    assert "loss/output" not in lines[0]
    drawn = draw_here(load_pipeline(world / "runs/slim/student"))
    again = draw_here(load_pipeline(world / "runs/slim/student"))
    assert drawn.std() > 0 and np.array_equal(drawn, again)


FASTER = ["engine.channels_last=true", "engine.attention=flash"]


@pytest.mark.parametrize(
    "words",
    [
        [*FASTER, "engine.zero_stage=2"],
        pytest.param([*FASTER, "engine.zero_stage=3"], marks=pytest.mark.slow),
        pytest.param([*FASTER, "engine.kind=fsdp"], marks=pytest.mark.slow),
        pytest.param(["engine.compile=blocks", "engine.activation_checkpointing=true"], marks=pytest.mark.slow),
        pytest.param([*FASTER, "engine.compile=whole", "engine.teacher_graph=true"], marks=pytest.mark.slow),
        pytest.param([*FASTER, "engine.compile=whole", "engine.kind=fsdp"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_what_makes_it_faster_trains_the_same(world: Path, tmp_path: Path, words: list[str]) -> None:
    """Each engine ends with the same loss. test_switches.py compares losses and weights of the bare step."""
    run = tmp_path / "run"
    said = randcond(world, "run", "train", "demo-with", *TINY, *words, f"paths.run={run}", "--gpus", "1").stdout
    assert f"attention of the student: {'flash' if FASTER[1] in words else 'sdpa'}" in said
    assert ("compiled: teacher" in said) == any(word.startswith("engine.compile") for word in words)
    if words[-1] == "engine.kind=fsdp" and len(words) == 4:
        assert "compiled: teacher whole, student blocks" in said
    assert "first step done" in said and sum(json.loads((run / "startup.json").read_text()).values()) > 1
    assert metrics(run)[-1]["loss/total"] == pytest.approx(
        metrics(world / "runs/demo/with")[-1]["loss/total"], rel=1e-3
    )


def test_what_is_watched(world: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(world / "runs/demo/with/tensorboard")).Reload()
    tags = board.Tags()
    wanted = {"loss/output", "loss/feature/up_blocks.3", "grad_norm", "samples_per_s", "eta_s", "replaced_share"}
    assert wanted <= set(tags["scalars"])
    assert any(tag.startswith("replaced_by_timestep/") for tag in tags["scalars"])
    assert any(tag.startswith("loss_by_timestep/") for tag in tags["scalars"])
    assert tags["images"] == ["teacher over student"]
    lines = metrics(world / "runs/demo/without")
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert all(line["replaced_share"] == 0 for line in lines)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["teacher.path=/nowhere"], "no teacher at /nowhere"),
        (["train.global_batch=15"], "15 does not divide over 2 ranks"),
        (["engine.micro_batch=3"], "engine.micro_batch: 3 does not divide the 8 samples"),
        (["student.rule=block-huge"], "unknown student 'block-huge'"),
        (["student.rule=channel-base", "student.init=teacher"], "use init: random"),
        (["conditioning.p=often"], "conditioning.p: unknown p(t) 'often'"),
        (["paths.cache=runs/none"], "no complete cache at runs/none"),
        (["paths.pool=runs/none"], "no caption pool at runs/none"),
        (["paths.run=runs/new", "cache.guidance=5.0"], "guidance is 3.0 there, 5.0 here"),
        (["paths.run=runs/new", "cache.exclude=[four]"], "exclude is ['three'] there, ['four'] here"),
    ],
)
def test_bad_input_is_named_before_work_starts(
    world: Path, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs the stage's entry point in this process, as a rank that a launcher started does."""
    from randcond.launch.runtime import entry_point as stage
    from randcond.train.__main__ import check, train

    monkeypatch.setattr(stage, "_end", sys.exit)  # the real one would end the test process
    monkeypatch.setattr(stage, "log_to", lambda path, rank: None)  # it would take the test process's output
    monkeypatch.chdir(world)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # the stage changes them; pytest restores them
    if "divide" in said:
        for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}.items():
            monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        stage.stage_main({"train": (check, train)}, ["demo-with", *TINY, *words])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_rank_that_sees_another_cache_says_so(world: Path, tmp_path: Path) -> None:
    """If a host lacks a shard and on_error=skip, its rank would read the latents in another order. This is an error."""
    other = shutil.copytree(world, tmp_path / "other", ignore=shutil.ignore_patterns("checkpoints"))
    (next((other / "runs/demo").rglob("latents-00001.tar"))).unlink()
    port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    words = [*TINY, "on_error=skip", "paths.run=runs/apart"]
    ranks = []
    for number, folder in enumerate((world, other)):
        environment = {**port, "RANK": str(number), "LOCAL_RANK": str(number)}
        ranks.append(warm.Process(warm.Command("randcond.train", ["demo-with", *words], folder, environment)))
    try:
        said = ranks[1].communicate()[1]
    finally:
        for each in ranks:
            each.kill()
            each.wait()
    assert ranks[1].returncode == 2
    assert "error: the training data of rank 1 does not match this experiment: cached is 64 there, 96 here" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["paths.run=runs/demo/with", "train.lr=1"], "the run at runs/demo/with does not match this experiment: train"),
        (["paths.run=runs/demo/with", "engine.precision=bf16"], "does not match this experiment: precision"),
        (["paths.run=runs/demo/with", "student.rule=channel-tiny"], "does not match this experiment: student"),
        # With a loader process, which must not keep the command from ending.
        (["paths.run=runs/nan", "train.lr=1e30", "train.workers=1"], "stopped: NaN or infinite at step 2: loss/"),
    ],
)
def test_what_only_a_started_engine_sees_is_named_too(world: Path, words: list[str], said: str) -> None:
    kernels = (world / "runs/demo/with/attention.json").read_bytes()
    done = randcond(world, "run", "train", "demo-with", *TINY, *words, "--gpus", "1", code=2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert (world / "runs/demo/with/attention.json").read_bytes() == kernels  # the refused run does not overwrite it
    assert not (world / "runs/nan/checkpoints").exists()  # a run with NaN saves no checkpoint


def test_a_cache_of_another_teacher_is_refused(world: Path) -> None:
    other = world / "other-teacher"
    subprocess.run(["cp", "-r", str(PACKAGE / "data/digits/models/teacher"), str(other)], check=True)
    config = other / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("0.012", "0.011"))
    words = [*TINY, f"teacher.path={other}"]
    for stage in ("cache", "train"):
        said = randcond(world, "run", stage, "demo-with", *words, "paths.run=runs/other", code=2).stderr
        assert "the cache at runs/demo/cache does not match this experiment: teacher is" in said


def test_stages_run_by_hand(world: Path) -> None:
    """A cluster's own script can run `python -m randcond.train`, also with the deepspeed launcher's --local_rank."""
    words = ["demo-with", "--local_rank=0", *TINY, "paths.run=runs/hand"]
    done = warm.run([warm.Command("randcond.train", words, world)])[0]
    assert done.returncode == 0 and (world / "runs/hand/train.json").is_file(), done.stderr
    wrong = warm.run([warm.Command("randcond.train", [*words, "--dryrun"], world)])[0]
    assert wrong.returncode == 2 and "unknown flag --dryrun" in wrong.stderr


STEP_ORDER = """
import sys
from randcond.launch.config.experiments import load_config
from randcond.train import loop, prefetch

order, set_up = [], loop.set_up

def noted(owner, name):
    inner = getattr(owner, name)
    def call(*given, **named):
        order.append(name)
        return inner(*given, **named)
    setattr(owner, name, call)

def noting(*given):
    training = set_up(*given)
    for name in ("forward", "backward", "step"):
        noted(training.engine, name)
    return training

noted(prefetch.Prefetcher, "fetch")
loop.set_up = noting
loop.run(load_config("demo-with", sys.argv[1:]))
print("order:", *order)
"""


def test_the_next_batch_is_fetched_while_the_device_has_the_forward_pass(world: Path) -> None:
    """A real run calls forward, fetch, backward, step. The fetch before each forward finds its batch ready."""
    words = [*TINY, "paths.run=runs/order", "train.steps=2", "train.sample_every=0", "engine.micro_batch=8"]
    done = warm.run_code(STEP_ORDER, *words, folder=world)
    assert done.returncode == 0, done.stderr
    micro = ["fetch", "forward", "fetch", "backward", "step"]
    assert done.stdout.split("order: ")[1].split() == 4 * micro
