"""Every family goes the whole road: pool, cache, training on two ranks, kill -9, evaluation, stock diffusers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from PIL import Image

from randcond.model_zoo.export import denoiser_weights, trained_student
from randcond.model_zoo.students.registry import student_of
from randcond.model_zoo.teacher import Teacher
from randcond.model_zoo.text_encoding.options import TextOptions
from randcond.train.state.checkpoint import newest_valid
from tests.support import flow_teachers, warm
from tests.support.demo import on_ranks, randcond
from tests.support.interruptions import wait_for
from tests.support.runs import metrics, same_bits
from tests.support.web import free_port

MAKERS = {"sd3": flow_teachers.sd3, "pixart": flow_teachers.pixart, "klein": flow_teachers.klein}
PIXELS = {"sd3": 64, "pixart": 128, "klein": 128}  # the first and the last are smaller than the teacher's own
TRAIN = ["train.steps=6", "train.checkpoint_every=2", "train.log_every=1"]


def experiment(name: str) -> dict[str, Any]:
    """Returns the experiment's YAML for a tiny teacher."""
    drawn = {"resolution": PIXELS[name]} | ({} if name == "pixart" else {"sampler": "teacher"})
    return {
        "teacher": {"path": "teacher", "dtype": "fp32", "text_tokens": 16},
        "student": {"rule": "depth-2+2" if name == "klein" else "depth-3"},
        "cache": {"captions": ["captions.txt"], "size": 32, "batch": 8, "shard_size": 16, "steps": 2, **drawn},
        "pool": {"sources": ["captions.txt"]},
        "conditioning": {"of": "sigma"},
        "train": {"global_batch": 8, "workers": 0, "sample_every": 0 if name == "sd3" else 6, "lr": 1e-3},
        "engine": {"precision": "fp32", "processes": 2, "threads": 1},
        "eval": {"captions": ["captions.txt"], "size": 4, "metrics": [], "steps": 2, "protocol": "native", **drawn},
        "paths": {"run": "runs/run", "cache": "runs/cache", "pool": "runs/pool", "reference": "runs/teacher"},
    }


def experiment_of(road: Path) -> dict[str, Any]:
    """Returns the contents of a road's mine.yaml."""
    return dict(yaml.safe_load((road / "mine.yaml").read_text()))


TIMES = """
import torch
from pathlib import Path
from randcond.launch.config.experiments import load_config
from randcond.model_zoo.denoiser.forward import cast
from randcond.model_zoo.teacher import Teacher
from randcond.train.build import build_step
from randcond.train.engine import build_engine
words = ["engine.kind=fsdp", "engine.precision=bf16", "engine.processes=1", "train.global_batch=2"]
config = load_config("mine.yaml", words)
teacher = Teacher.load(Path("teacher"), "bf16")
engine = build_engine(config, build_step(config, teacher)[0])
seen = []
engine.module.network.time_text_embed.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
condition = cast(teacher.family, teacher.encode(teacher.tokenizers(["a red cat"] * 2)), engine.dtype)
times = torch.tensor([873.3, 0.7])
engine.forward(torch.randn(2, *teacher.latent_shape).to(engine.dtype), times, condition)
assert torch.equal(seen[0], times), seen[0]
print("exact")
"""


def test_fsdp_rounds_no_timesteps(tmp_path: Path) -> None:
    """In bf16, t = 873.3 would be 872. ZeRO gives the student the exact one, as the teacher gets."""
    flow_teachers.sd3(tmp_path / "teacher")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(experiment("sd3")))
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    done = warm.run([warm.Command("-c", [TIMES], tmp_path, here)])[0]
    assert done.stdout.endswith("exact\n"), done.stderr


@pytest.fixture(scope="module", params=["sd3", *(pytest.param(x, marks=pytest.mark.slow) for x in ("pixart", "klein"))])
def road(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder where a tiny teacher's latents are drawn and a student is trained on two ranks (ZeRO-1)."""
    folder = tmp_path_factory.mktemp(request.param)
    MAKERS[request.param](folder / "teacher")
    words = [
        f"{colour} {thing}" for colour in ("red", "blue", "green", "a") for thing in ("cat", "dog", "table", "one")
    ]
    (folder / "captions.txt").write_text("".join(f"{word} on the {word}\nphoto of {word}\n" for word in words))
    (folder / "mine.yaml").write_text(yaml.safe_dump(experiment(request.param)))
    for stage in ("pool", "cache", "train"):
        randcond(folder, "run", stage, "mine.yaml", *(TRAIN if stage == "train" else []))
    return folder


@pytest.mark.parametrize("kind", ["deepspeed", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_killed_and_resumed_it_is_the_same_student(kind: str, road: Path) -> None:
    words = ["mine.yaml", *TRAIN, f"engine.kind={kind}"]
    whole, cut = (road / "runs" / f"{name}-{kind}" for name in ("whole", "cut"))
    if kind == "deepspeed":
        whole = road / "runs/run"
    else:
        randcond(road, "run", "train", *words, f"paths.run={whole}")
    words.append(f"paths.run={cut}")
    ranks = [warm.Process(each) for each in on_ranks(2, "randcond.train", words, road)]
    wait_for(lambda: (cut / "checkpoints/step-00000002").is_dir(), ranks[0])
    for each in ranks:
        each.kill()
        each.wait()
    assert not (cut / "student").is_dir(), "it ended before it was killed"
    assert "resuming from step" in randcond(road, "run", "train", *words).stdout
    assert same_bits(whole, cut)


def test_one_rank_trains_as_two(road: Path) -> None:
    randcond(road, "run", "train", "mine.yaml", *TRAIN, "--gpus", "1", "paths.run=runs/alone")
    both, alone = metrics(road / "runs/run"), metrics(road / "runs/alone")
    for ours, theirs in zip(alone, both, strict=True):
        assert ours["loss/total"] == pytest.approx(theirs["loss/total"], rel=1e-4)
        assert ours["replaced_share"] == theirs["replaced_share"]


def test_fsdp_trains_as_zero(road: Path) -> None:
    randcond(road, "run", "train", "mine.yaml", *TRAIN, "engine.kind=fsdp", "paths.run=runs/fsdp")
    for ours, theirs in zip(metrics(road / "runs/fsdp"), metrics(road / "runs/run"), strict=True):
        assert ours["loss/total"] == pytest.approx(theirs["loss/total"], rel=1e-4)


def test_the_cards_usage_draws_what_was_trained(road: Path) -> None:
    """The code of the model card, in the student's folder. The picture has the size of the cached latents."""
    student = road / "runs/run/student"
    code = (student / "README.md").read_text().split("```python\n")[1].split("```")[0]
    done = warm.run([warm.Command("-c", [code], student)])[0]
    assert done.returncode == 0, done.stderr
    with Image.open(student / "image.png") as image:
        assert image.size == (experiment_of(road)["eval"]["resolution"],) * 2


@torch.no_grad()
def test_stock_diffusers_draws_what_we_draw(road: Path) -> None:
    randcond(road, "run", "eval", "mine.yaml", *TRAIN)
    assert (road / "runs/run/eval-raw/scores.json").is_file()
    stock = DiffusionPipeline.from_pretrained(road / "runs/run/student")
    pixels = experiment_of(road)["eval"]["resolution"]
    settings = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np", "max_sequence_length": 16}
    settings |= {"prompt": "a red cat", "height": pixels, "width": pixels}
    if "PixArt" in type(stock).__name__:
        settings |= {"use_resolution_binning": False, "clean_caption": False}
    teacher = Teacher.load(road / "teacher", "fp32", text=TextOptions(16))
    checkpoint = newest_valid(road / "runs/run/checkpoints")
    assert checkpoint
    like = student_of(experiment_of(road)["student"]["rule"], teacher.architecture).denoiser.blank()
    own = teacher.pipeline(
        "teacher", trained_student(like, denoiser_weights(checkpoint.full("weights")), torch.float32)
    )
    images = []
    for pipe in (stock, own):
        pipe.set_progress_bar_config(disable=True)
        images.append(pipe(generator=torch.Generator().manual_seed(0), **settings).images)
    assert np.abs(images[0] - images[1]).max() < 1e-5
    random = teacher.pipeline("teacher")(generator=torch.Generator().manual_seed(0), **settings).images
    assert np.abs(images[0] - random).max() > 1e-4  # the student is not its teacher
