"""The model card of a student: its snippet runs, and it names licence and origin, and no path of this machine."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from randcond.launch.config.experiments import load_config
from randcond.model_zoo.checkpoints.layouts import HUB
from randcond.model_zoo.denoiser.architecture import Architecture
from randcond.model_zoo.export import copy_student, export_student, load_denoiser
from randcond.model_zoo.students.registry import build_student
from randcond.train.__main__ import check
from randcond.train.state.model_card import model_card
from randcond.train.state.origin import _PUBLISHED, trained_size
from randcond.train.tools.write_experiment import write_experiment
from tests.support import shaped


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shaped.build("sd-v1-4", tmp_path_factory.mktemp("teachers") / "my-teacher")


def card_of(teacher: Path, *words: str, path: str | None = None) -> str:
    config = load_config("demo-with", [f"teacher.path={path or teacher}", *words])
    return model_card(config, "ema", 7, teacher)


def front(card: str) -> dict[str, object]:
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("\n---\n")[0])


def with_readme(teacher: Path, text: str, request: pytest.FixtureRequest) -> None:
    (teacher / "README.md").write_text(text)
    request.addfinalizer(lambda: (teacher / "README.md").unlink(missing_ok=True))


@pytest.mark.parametrize("rule", ["block-base", "slim-base"])
def test_the_usage_runs_as_written(rule: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = build_student(rule, Architecture.of(load_denoiser(teacher / "unet", torch.float32)), 0)
    export_student(tmp_path / "student", unet, teacher, card_of(teacher, f"student.rule={rule}"))
    copy_student(tmp_path / "half", tmp_path / "student", (tmp_path / "student/README.md").read_text(), torch.float16)
    for folder in (tmp_path / "student", tmp_path / "half"):
        monkeypatch.chdir(folder)
        (code,) = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)
        exec(code, {})
        assert Path("image.png").stat().st_size > 1000


def test_a_student_of_a_student_names_both_teachers(teacher: Path, request: pytest.FixtureRequest) -> None:
    with_readme(teacher, card_of(teacher, path="me/first"), request)
    second = card_of(teacher)
    assert "arXiv 2504.02011) from `my-teacher`, which was distilled from `me/first`." in second
    with_readme(teacher, second, request)
    assert "from `my-teacher`, which was distilled from `my-teacher`, which was distilled from `me/first`." in card_of(
        teacher
    )


def test_a_student_as_a_teacher_keeps_the_size_that_it_was_trained_on(
    teacher: Path, request: pytest.FixtureRequest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert trained_size(teacher) is None  # no card
    with_readme(teacher, card_of(teacher, "cache.resolution=192", "eval.resolution=192"), request)
    assert trained_size(teacher) == 192
    captions = tmp_path / "captions.txt"
    captions.write_text("".join(f"caption {number}\n" for number in range(300)))
    write_experiment(tmp_path / "second.yaml", str(teacher), [str(captions)], "rtx4090", 1, "")
    cache = load_config(str(tmp_path / "second.yaml"), []).cache
    assert cache.resolution == 192
    check(load_config(str(tmp_path / "second.yaml"), ["cache.resolution=128", "eval.resolution=128"]))
    assert "latents are of 128 pixels, but this teacher is a student that was trained on 192" in caplog.text


def test_a_student_of_a_published_teacher_names_it_and_its_licence(teacher: Path) -> None:
    card = card_of(teacher, path="CompVis/stable-diffusion-v1-4")
    assert front(card) == {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "license": "creativeml-openrail-m",
        "base_model": "CompVis/stable-diffusion-v1-4",
        "tags": ["text-to-image", "stable-diffusion", "distillation", "random-conditioning"],
    }
    assert "The teacher's licence is creativeml-openrail-m." in card and "use restrictions (its Attachment A)" in card
    assert "| p(t) | exponential (of time); null captions 10% |" in card and "| timesteps | uniform |" in card
    card = card_of(teacher, path="stabilityai/stable-diffusion-3.5-medium")
    assert front(card)["license_name"] == "stabilityai-ai-community"
    assert "The teacher's licence is stabilityai-ai-community (https://" in card and "limits commercial use" in card
    assert _PUBLISHED.keys() >= HUB.keys()
    card = card_of(teacher, path="me/something")
    assert front(card)["license"] == "other" and front(card)["base_model"] == "me/something"
    assert "states no licence" in card and "look it up at https://huggingface.co/me/something" in card


@pytest.mark.parametrize(
    ("head", "expected", "said"),
    [
        ("license: openrail++\nbase_model: [a/b]", {"license": "openrail++", "base_model": "a/b"}, "Attachment A"),
        ("license: cc-by-nc-4.0", {"license": "cc-by-nc-4.0"}, "It allows no commercial use."),
        (
            "license: other\nlicense_name: sd-community\nlicense_link: https://a.b/c",
            {"license": "other", "license_name": "sd-community", "license_link": "https://a.b/c"},
            "The teacher's licence is sd-community (https://a.b/c).",
        ),
        ("tags: [x]", {"license": "other"}, "look it up where my-teacher comes from before"),
        ("license: [\n", {"license": "other"}, "states no licence"),
    ],
)
def test_a_teachers_own_card_says_its_licence(
    head: str, expected: dict[str, str], said: str, teacher: Path, request: pytest.FixtureRequest
) -> None:
    with_readme(teacher, f"---\n{head}\n---\n# A teacher", request)
    card = card_of(teacher)
    found = front(card)
    names = ("license", "license_name", "license_link", "base_model")
    assert {key: found[key] for key in names if key in found} == expected
    assert said in card


def test_a_card_is_exported_again_with_its_licence(
    teacher: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with_readme(teacher, "---\nlicense: mit\nbase_model: a/b\n---\n", request)
    student = tmp_path / "student"
    unet = build_student("block-tiny", Architecture.of(load_denoiser(teacher / "unet", torch.float32)), 0)
    export_student(student, unet, teacher, card_of(teacher))
    config = load_config("demo-with", ["teacher.path=gone/teacher", f"paths.run={tmp_path}"])
    card = model_card(config, "ema", 7, student, "bf16", student)
    assert front(card)["license"] == "mit" and front(card)["base_model"] == "a/b" and "weights in bf16 after 7" in card


def test_the_licence_of_an_earlier_student_holds_too(
    teacher: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with_readme(teacher, "---\nlicense: mit\n---\n", request)
    earlier = tmp_path / "student_ema"
    earlier.mkdir()
    for text, said in (
        (
            "license: cc-by-nc-4.0",
            "an earlier student, whose licence is cc-by-nc-4.0: it holds for this one too. It allows",
        ),
        ("tags: [x]", "an earlier student, whose folder states no licence."),
        ("license: mit", ""),
    ):
        (earlier / "README.md").write_text(f"---\n{text}\n---\n")
        card = card_of(teacher, f"student.init={earlier}")
        assert said in card and ("earlier student, whose" in card) == bool(said)
        assert front(card)["license"] == "mit" and str(tmp_path) not in card


def test_a_card_names_no_path_of_this_machine(teacher: Path, tmp_path: Path) -> None:
    words = [f"{key}={tmp_path}/x/{key}.csv" for key in ("paths.run", "paths.cache", "paths.pool", "cache.local")]
    words += [
        f"pool.sources=[{tmp_path}/x/texts.csv, package:data/digits/captions.txt]",
        "student.init=~/old/student_ema",
    ]
    card = card_of(teacher, *words, "train.schedule=cosine", "train.warmup=5")
    assert str(tmp_path.parent) not in card and "~/" not in card
    assert "from `my-teacher`" in card and "the cached captions, texts.csv, package:data/digits/captions.txt" in card
    assert "Initialisation: the student old/student_ema. Learning rate: 0.001, cosine, 5 steps of warm-up." in card
    settings = yaml.safe_load(card.split("```yaml\n")[1].removesuffix("```\n"))
    assert settings["train"]["steps"] == 350 and settings["teacher"]["path"] == "my-teacher"
