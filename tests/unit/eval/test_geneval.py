"""GenEval: its rules on hand-made objects, its networks in the real formats, and a whole evaluation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from randcond.eval.checks import check_evaluation
from randcond.eval.geneval.networks import NOTE, check_geneval_networks, load_geneval_networks
from randcond.eval.geneval.prompts import COLOURS, OBJECTS, Item, Wanted, read_items
from randcond.eval.geneval.rules import Found, is_correct, places_of
from randcond.eval.geneval.run import by_task
from randcond.eval.images.protocol_images import to_picture
from randcond.eval.scores.bootstrap import load_influence
from randcond.eval.stage import run
from randcond.eval.tables.collect import collect
from randcond.launch.errors import UserError
from tests.support.detectors import mask2former_folder
from tests.support.networks import clip_folder, digit_images
from tests.unit.eval.test_evaluation import system

LINES = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "counting",
        "include": [{"class": "clock", "count": 2}],
        "exclude": [{"class": "clock", "count": 3}],
        "prompt": "a photo of two clocks",
    },
    {
        "tag": "position",
        "include": [{"class": "teddy bear", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}],
        "prompt": "a photo of a dog right of a teddy bear",
    },
    {
        "tag": "color_attr",
        "include": [{"class": "cup", "count": 1, "color": "purple"}, {"class": "apple", "count": 1, "color": "black"}],
        "prompt": "a photo of a purple cup and a black apple",
    },
]


def at(left: float, top: float, confidence: float = 0.95, side: float = 10) -> Found:
    return Found(confidence, (left, top, left + side, top + side))


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def no_colours(found: Any, name: str) -> list[str]:
    raise AssertionError("this prompt asks for no colour")


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Item]:
    path = write(tmp_path_factory.mktemp("prompts") / "data.jsonl", LINES)
    return {item.task: item for item in read_items(path)}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of a detector and a CLIP."""
    folder = tmp_path_factory.mktemp("networks")
    return mask2former_folder(folder / "detector"), clip_folder(folder / "clip")


@pytest.mark.parametrize(
    ("confidences", "correct"),
    [([], False), ([0.29], False), ([0.31], True), ([0.3], False), ([0.9, 0.8], True)],  # more benches are no fault
)
def test_an_object_must_be_there(confidences: list[float], correct: bool, items: dict[str, Item]) -> None:
    found = {"bench": [at(0, 0, confidence) for confidence in confidences], "cat": [at(0, 0)]}
    assert is_correct(items["single_object"], found, no_colours) is correct


@pytest.mark.parametrize(
    ("confidences", "correct"),
    [([0.95], False), ([0.95, 0.91], True), ([0.95, 0.91, 0.89], True), ([0.95, 0.91, 0.91], False)],
)
def test_numbers_count_sure_objects_only(confidences: list[float], correct: bool, items: dict[str, Item]) -> None:
    found = {"clock": [at(0, 0, confidence) for confidence in confidences]}
    assert is_correct(items["counting"], found, no_colours) is correct


@pytest.mark.parametrize(
    ("dog", "correct"), [(at(30, 0), True), (at(-30, 0), False), (at(0, 30), False), (None, False), (at(1, 0), False)]
)
def test_a_place_is_seen_from_the_other_object(dog: Found | None, correct: bool, items: dict[str, Item]) -> None:
    found = {"teddy bear": [at(0, 0)], "dog": [dog] if dog else []}
    assert is_correct(items["position"], found, no_colours) is correct
    assert not is_correct(items["position"], {"dog": [at(30, 0)]}, no_colours)  # nothing to be beside


@pytest.mark.parametrize(
    ("left", "top", "expected"),
    [
        (30, 0, {"right of"}),
        (-30, 0, {"left of"}),
        (0, 30, {"below"}),
        (0, -30, {"above"}),
        (30, 30, {"right of", "below"}),
        (30, 5, {"right of"}),  # the smaller distance is within a tenth of the sizes
        (2, 1, set()),
    ],
)
def test_places(left: float, top: float, expected: set[str]) -> None:
    assert places_of(at(left, top), at(0, 0)) == expected


def test_colours_are_asked_of_the_surest_objects(items: dict[str, Item]) -> None:
    asked = []

    def colours(found: Any, name: str) -> list[str]:
        asked.append((name, len(found)))
        return [{"cup": "purple", "apple": "black"}[name]]

    found = {"cup": [at(0, 0), at(5, 5, 0.5)], "apple": [at(30, 0)]}
    assert is_correct(items["color_attr"], found, colours) and asked == [("cup", 1), ("apple", 1)]
    assert not is_correct(items["color_attr"], found, lambda found, name: ["white"])
    assert not is_correct(items["color_attr"], {"cup": found["cup"]}, colours)


def test_at_most_sixteen_objects_of_a_kind_count() -> None:
    many = Item("many", "single_object", (Wanted("dog", 1),), (Wanted("dog", 17),))
    assert is_correct(many, {"dog": [at(0, 0)] * 40}, no_colours)


def test_the_score_is_the_mean_of_the_tasks() -> None:
    tasks = ["counting"] * 3 + ["position"]
    shares, influence = by_task(torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64), tasks)
    assert shares == pytest.approx({"counting": 1 / 3, "position": 1.0})
    assert influence.tolist() == pytest.approx([4 / 9, -2 / 9, -2 / 9, 0.0])  # an image counts 1/3 of 1/2, times 4


def test_colours_are_those_of_clips_zero_shot_classifier(networks: tuple[Path, Path]) -> None:
    """200 images: the mean of three templates' embeddings, as published, by open_clip's own functions."""
    loaded = load_geneval_networks(*map(str, networks), "cpu")
    images = digit_images(200)
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{networks[1]}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{networks[1]}")
    templates = [
        lambda colour: f"a photo of a {colour} cup",
        lambda colour: f"a photo of a {colour}-colored cup",
        lambda colour: f"a photo of a {colour} object",
    ]
    with torch.no_grad():
        weights = open_clip.build_zero_shot_classifier(model, tokenize, list(COLOURS), templates)
        pixels = torch.stack([preprocess(to_picture(image)) for image in images])
        logits = model.encode_image(pixels, normalize=True) @ weights
    expected = [COLOURS[number] for number in logits.argmax(dim=1).tolist()]
    assert loaded.nearest_colours(list(images), "cup") == expected and len(set(expected)) > 1
    assert torch.allclose(loaded._classifier("cup"), weights, atol=1e-5)


def test_the_background_of_an_object_is_grey(networks: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, seen = load_geneval_networks(*map(str, networks), "cpu"), []
    monkeypatch.setattr(loaded, "nearest_colours", lambda crops, name: seen.extend(crops) or ["red"])
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    image[0] = 200
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:5, 3:7] = True
    mask[2, 3] = False
    assert loaded.colours(image, [Found(0.9, (3, 2, 7, 5), mask)], "cup") == ["red"]
    (crop,) = seen
    assert (
        crop.shape == (3, 3, 4) and crop[:, 0, 0].tolist() == [153, 153, 153] and crop[:, 1, 1].tolist() == [200, 0, 0]
    )


def test_objects_have_the_boxes_of_their_masks(networks: tuple[Path, Path]) -> None:
    loaded = load_geneval_networks(*map(str, networks), "cpu")
    found = loaded.objects(digit_images(4))
    assert len(found) == 4 and any(found)
    for objects in found:
        for name, some in objects.items():
            assert name in OBJECTS and [each.confidence for each in some] == sorted(
                (each.confidence for each in some), reverse=True
            )
            for each in some:
                left, top, right, bottom = map(int, each.box)
                assert each.mask[top:bottom, left:right].sum() == each.mask.sum() > 0
                assert each.mask[top].any() and each.mask[:, right - 1].any()


@pytest.mark.heavy
def test_a_network_is_drawn_and_scored(networks: tuple[Path, Path], tmp_path: Path) -> None:
    words = [f"eval.geneval.prompts={write(tmp_path / 'data.jsonl', LINES)}", "eval.geneval.images=2"]
    words += [f"eval.geneval.detector={networks[0]}", f"eval.geneval.clip={networks[1]}"]
    config = system(tmp_path, *words, "eval.size=2", "eval.batch=2", "eval.metrics=[digits]")
    check_evaluation(config)
    run(config)
    found = json.loads((tmp_path / "out" / "geneval" / "scores.json").read_text())
    assert set(found["scores"]["geneval_tasks"]) == {"single_object", "counting", "position", "color_attr"}
    assert found["scores"]["geneval"] == pytest.approx(np.mean(list(found["scores"]["geneval_tasks"].values())))
    assert found["scorers"]["note"] == NOTE and "substitute" in NOTE
    row = collect(None, {config.name: config})[0]
    assert row.scores["all"]["geneval"] == found["scores"]["geneval"] and row.protocol["geneval"]["note"] == NOTE
    own = {key for key in load_influence(tmp_path / "out") if "geneval" in key[1]}  # the others are of the digits
    assert own == {("all", "geneval")}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tag": "taste"}, "unknown tag 'taste'"),
        ({"include": []}, "it asks for no objects"),
        ({"include": ["cat"]}, "."),
        ({"include": [{"class": "dragon", "count": 1}]}, "unknown class 'dragon'"),
        ({"include": [{"class": "dog", "count": 1, "color": "teal"}]}, "unknown color 'teal'"),
        ({"include": [{"class": "dog", "count": 1, "position": ["near", 0]}]}, "unknown position 'near'"),
        ({"include": [{"class": "dog", "count": 1, "position": ["above", 0]}]}, "of dog refers to no entry before it"),
    ],
)
def test_a_damaged_line_is_named(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", [LINES[0], {**LINES[1], **change}])
    with pytest.raises(UserError, match=rf"eval\.geneval\.prompts: .*line 2: is no prompt of GenEval .*{said}"):
        read_items(path)


def test_missing_keys_and_networks_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", [{"prompt": "a cat"}])
    with pytest.raises(UserError, match=r"line 1: is no prompt of GenEval \(it lacks 'tag'\)"):
        read_items(path)
    with pytest.raises(UserError, match=r"eval\.geneval\.detector: there is no folder /gone"):
        check_geneval_networks("/gone", "timm/vit")


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(json.dumps({**LINES[0], "prompt": "a bench\u2028here"}, ensure_ascii=False).encode() + b"\n")
    assert read_items(path)[0].prompt == "a bench\u2028here"
    path.write_bytes(b"\xff\xfe{}\n")
    with pytest.raises(UserError, match=r"eval\.geneval\.prompts: .*line 1: is no prompt of GenEval"):
        read_items(path)


def test_what_is_missing_is_named(networks: tuple[Path, Path], tmp_path: Path) -> None:
    data = f"eval.geneval.prompts={write(tmp_path / 'data.jsonl', LINES)}"
    (tmp_path / "empty").mkdir()
    for words, said in (
        (["eval.geneval.prompts=inputs/geneval/none.jsonl"], "download it with `randcond fetch geneval`"),
        (
            [data, f"eval.geneval.detector={tmp_path / 'empty'}"],
            r"eval\.geneval\.detector: .*has no config\.json",
        ),
        ([data, "eval.geneval.images=0"], r"eval\.geneval\.images: is 0, expected at least 1"),
        (["eval.geneval2.size=-5"], r"eval\.geneval2\.size: is -5, expected at least 1"),
        ([data, f"eval.geneval.clip={tmp_path / 'empty'}"], r"eval\.geneval\.clip: .*has no open_clip_config\.json"),
    ):
        with pytest.raises(UserError, match=said):
            check_evaluation(system(tmp_path, *words))
    other = mask2former_folder(tmp_path / "other", classes=3)
    with pytest.raises(UserError, match=r"eval\.geneval\.detector: .* has 3 classes, expected the 80 of COCO"):
        load_geneval_networks(str(other), str(networks[1]), "cpu")
