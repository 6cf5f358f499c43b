"""T2I-CompBench: its lists, the nouns that spaCy finds, and all scores, with small real models."""

import json
import os
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub.constants
import pytest
import spacy
import torch
from spacy.tokens import Doc
from torchvision.transforms.functional import to_pil_image
from transformers import BlipForConditionalGeneration

from randcond.eval.checks import check_evaluation
from randcond.eval.compbench import nouns, prompts
from randcond.eval.compbench.attributes import (
    IMAGE_SIZE,
    attribute_scores,
    clean_question,
    encode_images,
    load_blip,
    yes_probability,
)
from randcond.eval.compbench.detector import NOTE, load_detector
from randcond.eval.compbench.score import Scorer
from randcond.eval.compbench.similarity import cosines, load_clip
from randcond.eval.compbench.spatial import Box, object_name, position_score, relation, spatial_score
from randcond.eval.features.network_weights import TRANSFORMERS_FILES, fingerprint, model_folder
from randcond.eval.features.open_clip_models import CLIP_FILES
from randcond.eval.images.generate import load_features
from randcond.eval.stage import run
from randcond.eval.tables.collect import collect
from randcond.launch.config.experiments import load_config
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import write_json
from tests.support.compbench_models import annotated, make_blip, make_clip, make_detector, make_pipeline

# --- the lists

LISTS = {
    "color_val.txt": "a green bench and a blue bowl\na red cup\tcolor\t7\r\na round bagel and a square toaster.\n",
    "complex_val.txt": "The red hat was on top of the coat.\nThe Cat sat near the lamp.\nThe cat sleeps.",
    "complex_val_spatial.txt": "The red hat was on top of the coat.\n",
    "complex_val_action.txt": "the cat sleeps\n",
    "complex_val_spatialaction.txt": "The cat sat near the lamp.\n",
}


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    for name, text in LISTS.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_prompt_is_what_stands_before_the_first_tab(lists: Path) -> None:
    assert prompts.read_prompts(lists, "color") == [
        "a green bench and a blue bowl",
        "a red cup",
        "a round bagel and a square toaster.",  # the published list also has it without the full stop
    ]
    whole = prompts.read_prompts(lists, "complex")
    assert prompts.read_complex_kinds(lists, whole) == ["spatial", "spatialaction", "action"]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("color_val.txt", None, r"color_val\.txt: no such file; `randcond fetch compbench`"),
        ("color_val.txt", b"a cup\n\na mug\n", r"color_val\.txt, line 2: has no prompt"),
        ("color_val.txt", b"", r"color_val\.txt, line 1: has no prompt"),
        ("color_val.txt", b"a cup\na mug\na cup\tcolor\n", r"color_val\.txt, line 3: 'a cup' is already in line 1"),
        ("color_val.txt", b"a cup\n\xff\xfe", r"color_val\.txt, line 2: not UTF-8"),
        ("complex_val_action.txt", b"The dog sleeps.\n", r"'The cat sleeps\.' is in none of complex_val_spatial"),
        ("complex_val_action.txt", b"the red hat was on top of the coat", r"is also in complex_val_spatial\.txt"),
        ("complex_val_action.txt", None, r"complex_val_action\.txt: no such file"),
    ],
)
def test_lists_that_are_none(lists: Path, file: str, text: bytes | None, message: str) -> None:
    (lists / file).unlink()
    if text is not None:
        (lists / file).write_bytes(text)
    with pytest.raises(UserError, match=message):
        prompts.read_prompts(lists, "color")
        prompts.read_complex_kinds(lists, prompts.read_prompts(lists, "complex"))


def test_a_fetched_list_that_is_missing_says_how_to_fetch_it() -> None:
    with pytest.raises(UserError, match=r"inputs/compbench/shape_val.txt: no such file; .*`randcond fetch compbench`"):
        prompts.read_prompts(Path("inputs/compbench"), "shape")
    with pytest.raises(UserError, match="no category 'colour'; known: color, shape"):
        prompts.read_prompts(Path("inputs/compbench"), "colour")


# --- boxes


def box(x: float, y: float, confidence: float = 0.8, half: float = 10) -> Box:
    """Returns a square box around (x, y) with sides of 2 * half."""
    return Box(confidence, x - half, y - half, x + half, y + half)


HERE, WIDE = box(100, 100), box(100, 100, half=50)


@pytest.mark.parametrize(
    ("words", "second", "position"),
    [
        ("on the left of", box(200, 150), 1.0),  # (dx, dy) = (100, 50): the second is to the right
        ("on the left of", box(0, 150), 0.0),  # dx = -100
        ("on the left of", box(150, 200), 0.0),  # |dx| = 50 < |dy| = 100
        ("on the left of", box(200, 200), 0.0),  # |dx| = |dy|
        ("on the right of", box(0, 150), 1.0),  # dx = -100, |dx| > |dy| = 50
        ("on the right of", box(200, 150), 0.0),  # dx = 100
        ("on the right of", box(50, 200), 0.0),  # |dx| = 50 < |dy| = 100
        ("on the top of", box(150, 200), 1.0),  # dy = 100: the second is further down
        ("on the top of", box(150, 0), 0.0),  # dy = -100
        ("on the top of", box(200, 150), 0.0),  # |dy| = 50 < |dx| = 100
        ("on the bottom of", box(150, 0), 1.0),  # dy = -100
        ("on the bottom of", box(150, 200), 0.0),  # dy = 100
        ("on the bottom of", box(200, 50), 0.0),  # |dy| = 50 < |dx| = 100
        ("on top of", box(150, 200), 0.0),  # only "on the top of" has a rule
        (None, box(200, 150), 0.0),
        ("next to", box(240, 900), 1.0),  # |dx| = 140 < 150
        ("near", box(900, 240), 1.0),  # |dy| = 140 < 150
        ("on side of", box(250, 400), 0.5),  # |dx| = 150 is not below 150; 150 / max(150, 300)
        ("near", HERE, 1.0),  # at distance 0, whatever the IoU
        ("on the left of", HERE, 0.0),  # dx = 0
    ],
)
def test_the_position_of_two_boxes(words: str | None, second: Box, position: float) -> None:
    assert position_score(words, HERE, second) == pytest.approx(position)


@pytest.mark.parametrize(
    ("words", "dx", "dy", "position"),
    [
        # Squares of 100. A shift by 80 gives the IoU 20 * 100 / (20000 - 2000) = 1/9, and 0.1 / (1/9) = 0.9
        ("on the left of", 80, 0, 0.9),
        ("on the right of", -80, 0, 0.9),
        ("on the top of", 0, 80, 0.9),
        ("on the bottom of", 0, -80, 0.9),
        # A shift by 90: 10 * 100 / (20000 - 1000) = 1/19, below 0.1
        ("on the left of", 90, 0, 1.0),
        # A shift by 50: 5000 / 15000 = 1/3, and 0.1 / (1/3) = 0.3
        ("on the top of", 0, 50, 0.3),
    ],
)
def test_overlap_takes_from_a_direction(words: str, dx: float, dy: float, position: float) -> None:
    assert position_score(words, WIDE, box(100 + dx, 100 + dy, half=50)) == pytest.approx(position)


@pytest.mark.parametrize(
    ("prompt", "first", "second", "expected"),
    [
        # 0.25 (0.8 + 0.6) + 0.5 * 1 = 0.85
        ("a cat on the left of a dog", HERE, box(300, 100, 0.6), 0.85),
        # 0.25 (0.8 + 0.6) + 0.5 * 0 = 0.35, below 0.5
        ("a cat on the right of a dog", HERE, box(300, 100, 0.6), 0.0),
        # 0.25 (0.8 + 0.6) + 0.5 * 0.3 = 0.5, not below it
        ("a cat on the top of a dog", Box(0.8, 0, 0, 100, 100), Box(0.6, 0, 50, 100, 150), 0.5),
        # 0.25 (1 + 1) + 0.5 * 0 = 0.5: two certain boxes without the relation
        ("The cat was on top of the dog.", box(100, 100, 1.0), box(100, 300, 1.0), 0.5),
        ("a cat near a dog", HERE, None, 0.0),  # 0.25 * 0.8 = 0.2, below 0.5
        ("a cat near a dog", None, box(0, 0, 1.0), 0.0),  # 0.25 * 1 = 0.25
        ("a cat near a dog", None, None, 0.0),
        # one box for both: 0.25 (0.8 + 0.8) + 0.5 * 1
        ("a man near a woman", HERE, HERE, 0.9),
        # no area, so no IoU: 0.25 (0.5 + 0.5) + 0.5
        ("a cat on the left of a dog", box(0, 0, 0.5, 0), box(9, 0, 0.5, 0), 0.75),
    ],
)
def test_the_spatial_score(prompt: str, first: Box | None, second: Box | None, expected: float) -> None:
    assert spatial_score(prompt, first, second) == pytest.approx(expected)


def test_relations_and_persons() -> None:
    assert relation("a cat on the top of a dog") == "on the top of"
    assert relation("The cat was on top of the dog.") == "on top of"
    assert relation("a cat on the left of a dog near a car") == "near"  # the order of the list, not of the prompt
    for other in ("a cat above a dog", "a cat below a dog", "a cat inside a box", "a cat on the side of a dog"):
        assert relation(other) is None
    assert {object_name(noun) for noun in ("man", "woman", "boy", "girl")} == {"person"}
    assert object_name("women") == "women" and object_name("cat") == "cat"


# --- nouns


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pipeline(tmp_path_factory.mktemp("spacy") / "pipeline")


def test_what_a_pipeline_takes_out_of_prompts(pipeline: Path) -> None:
    nlp = nouns.load_pipeline(nouns.pipeline_folder(str(pipeline)))
    for each in annotated(random.Random(7), 60):  # sentences that it was not trained on
        doc = nlp(" ".join(each["words"]).replace(" .", "."))
        assert [token.pos_ for token in doc] == each["pos"] and [token.head.i for token in doc] == each["heads"]
    doc = nlp("a red mug on the left of a cat")
    assert nouns.noun_phrases(doc) == ["a red mug", "a cat"]
    assert nouns.outer_nouns(doc) == ("mug", "cat")
    assert nouns.noun_phrases(nlp("a green bench and a black bowl")) == ["a green bench", "a black bowl"]
    doc = nlp("The fluffy cat was on top of the soft sofa.")
    assert nouns.noun_phrases(doc) == ["The fluffy cat", "the soft sofa"]  # without "top"
    assert nouns.nouns_around(doc) == ("cat", "sofa")
    doc = nlp("The fluffy cat sat near the round lamp and the wooden bench.")
    assert nouns.noun_phrases(doc) == ["The fluffy cat", "the round lamp", "the wooden bench"]
    assert nouns.nouns_around(doc) == ("cat", "lamp")
    assert nouns.outer_nouns(doc) == ("cat", "bench")
    assert nouns.without_adjectives(doc) == "The cat sat near the lamp and the bench ."


def read(tagged: str) -> Doc:
    """Returns a Doc of words with given parts of speech, as in "cat/NOUN near/ADP"."""
    words, pos = zip(*(token.split("/") for token in tagged.split()), strict=True)
    return Doc(spacy.blank("en").vocab, list(words), pos=list(pos))


@pytest.mark.parametrize(
    ("tagged", "pair"),
    [
        ("The/DET red/ADJ hat/NOUN on/ADP top/NOUN of/ADP a/DET coat/NOUN rack/NOUN ./PUNCT", ("hat", "coat")),
        ("a/DET water/NOUN bottle/NOUN next/ADV to/ADP a/DET cat/NOUN", ("bottle", "cat")),
        ("Rex/PROPN near/ADP a/DET cat/NOUN", ("Rex", "cat")),
        ("a/DET cat/NOUN near/ADP New/PROPN York/PROPN ./PUNCT", ("cat", "York")),  # the last proper noun in a row
        ("a/DET cat/NOUN near/ADP Rex/PROPN", ("cat", "Rex")),
        ("a/DET cat/NOUN near/ADP Rex/PROPN and/CCONJ a/DET dog/NOUN", ("cat", "dog")),  # a common noun is preferred
        ("a/DET cat/NOUN inside/ADP a/DET box/NOUN", None),  # not a preposition of the list
        ("a/DET cat/NOUN on/ADP the/DET top/NOUN of/ADP a/DET box/NOUN", None),  # neither is this one
        ("near/ADP a/DET cat/NOUN", None),  # only one object
        ("a/DET cat/NOUN lies/VERB near/ADP", None),
        ("a/DET cat/NOUN near/ADP a/DET dog/NOUN next/ADV to/ADP a/DET mug/NOUN", None),  # four objects
        ("cat/NOUN on/ADP the/DET left/NOUN", None),  # no object after it
        ("cat/NOUN on/ADP side/NOUN of/ADP dog/NOUN", ("cat", "dog")),
        ("cat/NOUN on/ADP bottom/NOUN of/ADP dog/NOUN", ("cat", "dog")),
        ("cat/NOUN on/ADP the/DET right/NOUN of/ADP dog/NOUN", ("cat", "dog")),
    ],
)
def test_the_nouns_around_a_preposition(tagged: str, pair: tuple[str, str] | None) -> None:
    assert nouns.nouns_around(read(tagged)) == pair


def test_nouns_at_the_edges() -> None:
    assert nouns.outer_nouns(read("a/DET cat/NOUN sleeps/VERB")) == ("cat", "cat")
    assert nouns.outer_nouns(read("Rex/PROPN sleeps/VERB")) is None
    words = [word for number in range(10) for word in ("a", f"thing{number}", "and")][:-1]
    pos = ["DET", "NOUN", "CCONJ"] * 9 + ["DET", "NOUN"]
    deps = ["det", "conj", "cc"] * 9 + ["det", "conj"]
    heads = [3 * (index // 3) + 1 if index % 3 != 1 else max(1, index - 3) for index in range(len(words))]
    deps[1] = "ROOT"
    doc = Doc(spacy.blank("en").vocab, words, pos=pos, deps=deps, heads=heads)
    assert len(list(doc.noun_chunks)) == 10
    assert nouns.noun_phrases(doc) == [f"a thing{number}" for number in range(8)]


def test_an_installed_pipeline_is_found_without_running_it(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "tiny_core"
    shutil.copytree(pipeline, package / "tiny_core-1.0.0")
    (package / "__init__.py").write_text("raise RuntimeError('was run')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert nouns.pipeline_folder("tiny_core") == package / "tiny_core-1.0.0"
    assert "tiny_core" not in sys.modules


def test_pipelines_that_do_not_do(pipeline: Path, tmp_path: Path) -> None:
    for name in ("no_such_pipeline", str(tmp_path / "nowhere"), "os", "json.tool"):
        with pytest.raises(UserError, match=r"is no folder with a spaCy pipeline.*spacy download en_core_web_sm"):
            nouns.pipeline_folder(name)
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(UserError, match=r"blank: gives no parts of speech: .*it has no component"):
        nouns.load_pipeline(tmp_path / "blank")
    spacy.blank("de").to_disk(tmp_path / "german")
    with pytest.raises(UserError, match="german: is for the language 'de'"):
        nouns.load_pipeline(tmp_path / "german")
    with pytest.raises(UserError, match=r"tagger: gives no noun phrases: it needs a parser; it has morphologizer"):
        nouns.load_pipeline(make_pipeline(tmp_path / "tagger", parts=("morphologizer",), epochs=2))
    damaged = shutil.copytree(pipeline, tmp_path / "damaged")
    (damaged / "config.cfg").write_text("[nlp]\nlang = en\n")
    with pytest.raises(UserError, match="damaged: can't be loaded as a spaCy pipeline"):
        nouns.load_pipeline(damaged)


# --- networks


@pytest.fixture(scope="module")
def models(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {
        "blip": str(make_blip(root / "blip")),
        "clip": str(make_clip(root / "clip")),
        "detector": str(make_detector(root / "detector")),
        "spacy": str(pipeline),
    }


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Six images of coarse coloured squares, uint8 [6, 3, 64, 64]."""
    coarse = torch.randint(0, 256, (6, 3, 4, 4), generator=torch.Generator().manual_seed(3))
    return coarse.repeat_interleave(16, 2).repeat_interleave(16, 3).to(torch.uint8)


def test_the_probability_of_yes(models: dict[str, str], images: torch.Tensor) -> None:
    blip = load_blip(Path(models["blip"]), "cpu")
    questions, owners = ["a red mug?", "The soft, round sofa?", "a cat?"], torch.tensor([0, 0, 1])
    found = yes_probability(blip, encode_images(blip, images[:2]), questions, owners)
    logits: list[torch.Tensor] = []
    hook = blip.model.text_decoder.register_forward_hook(lambda *call: logits.append(call[2].logits))
    for question, owner in zip(questions, owners, strict=True):  # by the library, one question at a time
        size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        pixels = blip.image_processor(images=[images[owner]], size=size, return_tensors="pt")["pixel_values"]
        ids = torch.tensor([blip.tokenizer(question.lower())["input_ids"]])
        ids[0, 0] = blip.model.config.text_config.vocab_size - 1  # [ENC]
        start = torch.tensor([[blip.model.config.text_config.vocab_size - 2]])  # [DEC]
        blip.model(input_ids=ids, pixel_values=pixels, decoder_input_ids=start, interpolate_pos_encoding=True)
    hook.remove()
    chances = torch.cat(logits)[:, 0].softmax(dim=1)
    yes, no = (chances[:, blip.tokenizer.get_vocab()[word]] for word in ("yes", "no"))
    assert found.dtype == torch.float64 and torch.allclose(found, (yes / (yes + no)).double(), atol=1e-5)
    assert found.max() - found.min() > 1e-3 and blip.trained_size == 32
    phrases = [["a red mug", "The soft, round sofa"], ["a cat"], []]
    scores = attribute_scores(blip, images[:3], phrases, batch=2)
    assert torch.allclose(scores, torch.stack([found[0] * found[1], found[2], torch.ones(()).double()]), atol=1e-6)


def test_a_question_is_asked_as_blip_was_taught() -> None:
    assert clean_question('The "Red" mug. (new)?') == "the red mug new?"
    assert clean_question("a word " * 60).count(" ") == 49


PROMPTS = {
    "color": ["a red mug and a green bowl", "a black cat and a soft sofa", "a wooden bench and a round lamp"] * 2,
    "spatial": ["a girl on the left of a train", "a cat near a boy", "a mug next to a mug"] * 2,
    "non_spatial": ["A dog is digging in the sand.", "A man is flying a kite.", "A cat sleeps."] * 2,
    "complex": [
        "The red mug was on top of the black coaster.",
        "The fluffy cat sat on the soft sofa.",
        "The green plant stood near the round lamp.",
    ]
    * 2,
}
KINDS = ["spatial", "action", "spatialaction"] * 2
RANGES = {"color": (0, 1), "spatial": (0, 1), "non_spatial": (-1, 1), "complex": (-0.5, 1)}


@pytest.fixture(scope="module")
def scorer(models: dict[str, str]) -> Scorer:
    return Scorer.load(prompts.CATEGORIES, **models, batch=6)


@pytest.mark.parametrize("category", list(PROMPTS))
def test_every_category_is_scored_whatever_the_batch(scorer: Scorer, images: torch.Tensor, category: str) -> None:
    kinds = KINDS if category == "complex" else None
    found = scorer.score(category, images, PROMPTS[category], kinds)
    low, high = RANGES[category]
    assert found.shape == (6,) and found.dtype == torch.float64 and bool(torch.isfinite(found).all())
    assert low <= found.min() and found.max() <= high and (found[0] - found[3]).abs() > 1e-6  # the image matters
    one_by_one = [
        scorer.score(category, images[n : n + 1], PROMPTS[category][n : n + 1], kinds and kinds[n : n + 1])
        for n in range(6)
    ]
    assert torch.allclose(torch.cat(one_by_one), found, atol=1e-5, rtol=0)


def test_a_complex_score_is_the_mean_of_its_parts(scorer: Scorer, images: torch.Tensor) -> None:
    assert scorer.nlp and scorer.blip and scorer.clip and scorer.detector
    texts = PROMPTS["complex"]
    found = scorer.score("complex", images, texts, KINDS)
    attribute = scorer.score("shape", images, texts)
    plainer = ["The mug was on top of the coaster .", "The cat sat on the sofa .", "The plant stood near the lamp ."]
    action = cosines(scorer.clip, images, plainer * 2, batch=6)
    boxes = scorer.detector(images, [["mug", "coaster"], ["cat", "sofa"], ["plant", "lamp"]] * 2)
    for row, kind in enumerate(KINDS):
        near = [pair and Box(pair[0], *(479 / 64 * side for side in pair[1:])) for pair in boxes[row]]
        parts = [attribute[row]]
        parts += [torch.tensor(spatial_score(texts[row], *near))] if "spatial" in kind else []
        parts += [action[row]] if "action" in kind else []
        assert len(parts) == (3 if kind == "spatialaction" else 2)
        assert found[row].item() == pytest.approx(sum(map(float, parts)) / len(parts), abs=1e-5)


def test_a_detector_is_asked_for_the_two_objects_and_distances_are_in_the_published_frame(scorer: Scorer) -> None:
    asked: list[list[str]] = []

    def two_boxes(images: torch.Tensor, names: Sequence[Sequence[str]]) -> list[list[Box | None]]:
        asked.extend(map(list, names))
        return [[Box(1.0, 0, 0, 0, 0), Box(1.0, 30, 30, 30, 30)]] * len(images)

    staged = Scorer(nlp=scorer.nlp, blip=scorer.blip, clip=scorer.clip, detector=two_boxes)
    image = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    # 30 of 64 pixels are 30 * 479 / 64 = 224.53 in the published frame: 0.25 * 2 + 0.5 * 150 / 224.53
    found = staged.score("spatial", image, ["a girl near a sofa"])
    assert found.item() == pytest.approx(0.5 + 0.5 * 150 / (30 * 479 / 64))
    both = "The green plant stood near the round lamp and the soft sofa."
    staged.score("spatial", image, [both])
    staged.score("complex", image, [both], ["spatialaction"])
    assert asked == [["person", "sofa"], ["plant", "sofa"], ["plant", "lamp"]]
    nobody = "The fluffy cat sat on the soft sofa."  # no spatial preposition, so there is nothing to detect
    assert staged.score("complex", image, [nobody], ["spatial"]) * 2 == staged.score("color", image, [nobody])
    assert asked[3:] == [[]]


def test_a_detector_gives_each_name_its_surest_box(models: dict[str, str], images: torch.Tensor) -> None:
    detector = load_detector(Path(models["detector"]), "cpu", batch=4, threshold=0.0)
    names = [["cat", "person"], ["person", "cat"], ["cat", "cat"], ["cat"], [], ["cat", "person"]]
    found = detector(images, names)
    assert [len(boxes) for boxes in found] == [2, 2, 2, 1, 0, 2]
    assert found[2][0] == found[2][1] is not None and found[4] == []
    assert any(box is not None for boxes in found for box in boxes)
    inputs = detector.processor(
        text=[["a photo of a cat", "a photo of a person"]], images=[images[0]], return_tensors="pt"
    )
    with torch.no_grad():
        answer = detector.model(**inputs)
    for column, box in enumerate(found[0]):  # the most certain of the patches that prefer this name
        mine = answer.logits[0].argmax(dim=1) == column
        assert (box is not None) == bool(mine.any())
        if box is not None:
            best = answer.logits[0, :, column].masked_fill(~mine, -torch.inf).argmax()
            x, y, width, height = (64 * answer.pred_boxes[0, best]).tolist()
            sides = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            assert box.confidence == pytest.approx(answer.logits[0, best, column].sigmoid().item(), abs=1e-5)
            assert tuple(box[1:]) == pytest.approx(sides, abs=1e-3)
    surer = load_detector(Path(models["detector"]), "cpu", batch=4, threshold=1.0)
    assert surer(images[:1], [["cat", "person"]]) == [[None, None]]


def test_clip_gives_raw_cosines(models: dict[str, str], images: torch.Tensor) -> None:
    clip = load_clip(Path(models["clip"]), "cpu")
    found = cosines(clip, images[:2], ["a cat", "a red mug"], batch=1)
    with torch.no_grad():
        pixels = torch.stack([clip.preprocess(to_pil_image(image)) for image in images[:2]])
        seen, said = clip.model.encode_image(pixels), clip.model.encode_text(clip.tokenize(["a cat", "a red mug"]))
    assert torch.allclose(found, torch.cosine_similarity(seen, said).double(), atol=1e-6)


# --- loading


def test_only_what_the_categories_need_is_loaded(models: dict[str, str], images: torch.Tensor) -> None:
    nothing = dict.fromkeys(models, "/nowhere")
    clip_only = Scorer.load(["non_spatial"], **{**nothing, "clip": models["clip"]})
    assert set(clip_only.facts) == {"clip"} and models["clip"] in clip_only.facts["clip"]
    with pytest.raises(UserError, match=r"loaded without 'spatial' \(detector, spacy\)"):
        clip_only.score("spatial", images, PROMPTS["spatial"])
    with pytest.raises(UserError, match=r"loaded without 'colour' \(unknown category\)"):
        clip_only.score("colour", images, PROMPTS["color"])
    with pytest.raises(UserError, match="no category 'colour'"):
        Scorer.load(["colour"], **nothing)
    texture = Scorer.load(["texture"], **{**nothing, "blip": models["blip"], "spacy": models["spacy"]})
    assert set(texture.facts) == {"blip", "spacy"}
    with pytest.raises(UserError, match=r"/nowhere: has no config\.json, model\.safetensors"):
        Scorer.load(["spatial"], **{**nothing, "spacy": models["spacy"]})


def test_the_facts_name_the_networks(scorer: Scorer, models: dict[str, str]) -> None:
    facts = scorer.facts
    assert facts["detector_note"] == NOTE and "not from UniDet" in NOTE
    assert "images at 480, positions for 32" in facts["blip"] and "confidence from 0.2" in facts["detector"]
    for name in ("blip", "clip", "detector"):
        assert fingerprint(Path(models[name])) in facts[name]
    assert fingerprint(Path(models["spacy"]), whole=True) in facts["spacy"] and "en_pipeline" in facts["spacy"]
    assert set(facts) == {"spacy", "blip", "detector", "detector_note", "clip"}


@pytest.mark.heavy
def test_the_benchmark_through_the_harness(models: dict[str, str], tmp_path: Path) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    for category in ("color", "non_spatial", "complex"):
        texts = list(dict.fromkeys(PROMPTS[category]))
        (lists / f"{category}_val.txt").write_text("\n".join(texts) + "\n")
    for kind, text in zip(KINDS, PROMPTS["complex"][:3], strict=False):
        (lists / f"complex_val_{kind}.txt").write_text(text + "\n")
    (tmp_path / "system.yaml").write_text(
        "base: digits\n"
        "eval: {of: [teacher], size: 4, batch: 4, steps: 2, cost: false}\n"
        f"paths: {{reference: {tmp_path / 'out'}}}\n"
    )
    words = [f"{name}={path}" for name, path in models.items()]
    words += [f"lists={lists}", "categories=[color,non_spatial,complex]", "images=2"]
    config = load_config(str(tmp_path / "system.yaml"), [f"eval.compbench.{word}" for word in words])
    check_evaluation(config)
    run(config)
    found = json.loads((tmp_path / "out" / "compbench" / "scores.json").read_text())
    assert set(found["scores"]) == {"color", "non_spatial", "complex"}  # an average needs all six categories
    held = load_features(tmp_path / "out" / "compbench" / "color", 6, 4, "compbench")
    assert held.shape == (6,) and found["scores"]["color"] == pytest.approx(held.mean().item())
    assert held[0] != held[1]  # two images of one prompt
    row = collect(None, {"system": config})[0]
    assert row.scores["all"]["complex"] == found["scores"]["complex"]
    said = row.protocol["compbench"]
    assert said["images"]["color"] == "as drawn" and said["prompts_sha256"]["color"] != row.protocol["prompts_sha256"]
    stale = {**found, "protocol": {**found["protocol"], "color": {**found["protocol"]["color"], "seed": 7}}}
    write_json(tmp_path / "out" / "compbench" / "scores.json", stale)
    with pytest.raises(UserError, match=r"CompBench \(color\) of system does not match this experiment: seed is 7"):
        collect(None, {"system": config})
    (lists / "complex_val_action.txt").write_text("Another.\n")
    with pytest.raises(UserError, match="is in none of"):
        check_evaluation(config)


def test_a_fingerprint_follows_the_files(models: dict[str, str], tmp_path: Path) -> None:
    copy = shutil.copytree(models["clip"], tmp_path / "copy")
    assert fingerprint(copy) == fingerprint(Path(models["clip"]))
    (copy / "README.md").write_text("a card changes nothing")
    assert fingerprint(copy) == fingerprint(Path(models["clip"]))
    os.rename(copy / "open_clip_config.json", copy / "other.json")
    assert fingerprint(copy) != fingerprint(Path(models["clip"]))


def test_complex_prompts_need_their_kinds(scorer: Scorer, images: torch.Tensor) -> None:
    for kinds in (None, KINDS[:2], ["spatial"] * 5 + ["other"]):
        with pytest.raises(UserError, match="complex: each prompt needs a kind, one of spatial, action, spatialaction"):
            scorer.score("complex", images, PROMPTS["complex"], kinds)


def test_a_spatial_prompt_without_a_noun_is_named(scorer: Scorer, images: torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"no noun in the spatial prompt 'was \.'"):
        scorer.score("spatial", images[:1], ["was ."])


def test_folders_that_hold_something_else(models: dict[str, str], tmp_path: Path, pipeline: Path) -> None:
    # A BLIP of another kind would answer with untrained weights.
    other = shutil.copytree(models["blip"], tmp_path / "captions")
    config = load_blip(Path(models["blip"]), "cpu").model.config
    BlipForConditionalGeneration(config).save_pretrained(other)
    with pytest.raises(UserError, match=r"captions: can't be loaded as BlipForQuestion.* \(it is made"):
        load_blip(other, "cpu")
    with pytest.raises(UserError, match='the tokenizer has no "yes" or no "no"'):
        load_blip(make_blip(tmp_path / "silent", words=("yes",)), "cpu")
    with pytest.raises(UserError, match=r"leaves no \[ENC\] after bos_token_id"):
        load_blip(make_blip(tmp_path / "short", extra=1), "cpu")
    with pytest.raises(UserError, match=r"detector: can't be loaded as BlipFor.*type is owlv2, expected blip"):
        load_blip(Path(models["detector"]), "cpu")
    with pytest.raises(UserError, match=r"blip: can't be loaded as AutoModel.*type is blip, expected owlv2 or owlvit"):
        load_detector(Path(models["blip"]), "cpu", 1)
    broken = shutil.copytree(models["clip"], tmp_path / "clip")
    (broken / "open_clip_model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(UserError, match="clip: can't be loaded as a model of open_clip"):
        load_clip(broken, "cpu")
    for folder, loader in ((models["blip"], load_blip), (models["detector"], lambda f, d: load_detector(f, d, 1))):
        broken = shutil.copytree(folder, tmp_path / f"broken {Path(folder).name}")
        (broken / "model.safetensors").write_bytes(b"\0" * 100)
        with pytest.raises(UserError, match=r"broken .*: can't be loaded as .* \(Error while deserializing"):
            loader(broken, "cpu")


def test_pickles_are_not_taken(models: dict[str, str], tmp_path: Path) -> None:
    for name, weights, files in (
        ("blip", "model.safetensors", TRANSFORMERS_FILES),
        ("clip", "open_clip_model.safetensors", CLIP_FILES),
    ):
        copy = shutil.copytree(models[name], tmp_path / name)
        os.rename(copy / weights, copy / "pytorch_model.bin")
        with pytest.raises(UserError, match=rf"{name}: has no {weights}; weights are read from safetensors files only"):
            model_folder(str(copy), files)


def test_a_hub_id_names_its_revision(models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--owner--blip"  # the folder layout of the hub's client
    shutil.copytree(models["blip"], cached / "snapshots" / "0123abcd")
    (cached / "refs/refs/pr").mkdir(parents=True)
    (cached / "refs/refs/pr/7").write_text("0123abcd")
    found = model_folder("owner/blip@refs/pr/7", TRANSFORMERS_FILES)
    assert found == cached / "snapshots/0123abcd" and fingerprint(found) == fingerprint(Path(models["blip"]))
    for other in ("owner/blip", "owner/name@v1"):
        with pytest.raises(UserError, match=rf"^{other}: (not in the hub's cache|can't reach|.* has no such)"):
            model_folder(other, TRANSFORMERS_FILES)
