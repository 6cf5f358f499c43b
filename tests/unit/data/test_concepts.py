"""Unseen concepts, found by words, a language model, BLIP's captions of images or COCO's categories."""

import csv
import json
from collections import Counter
from pathlib import Path

import pytest
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

from randcond.data.concepts import concepts_command as tools
from randcond.data.concepts.coco import split_coco
from randcond.data.concepts.words import ANIMALS, WordList, read_words
from randcond.data.texts.wordnet import WordNet, find_wordnet
from randcond.launch.errors import UserError
from tests.support.endpoint import scripted

EXCERPT = Path(__file__).parent / "wordnet"  # an excerpt of WordNet 3.0's files
COCO_ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe")


def verdicts(out: Path) -> dict[str, dict]:
    lines = [json.loads(line) for line in (out / "captions.jsonl").read_text().splitlines()]
    return {line.pop("caption"): line for line in lines}


def test_wordnet_gives_common_nouns_by_depth_and_the_kinds_of_a_concept() -> None:
    nouns = WordNet(EXCERPT)
    assert {"dog", "justice", "entity", "house sparrow"} <= set(nouns.nouns(20))
    assert "Paris" not in nouns.nouns(20)  # a proper noun (an instance in WordNet)
    assert "entity" in nouns.nouns(0) and len(nouns.nouns(0)) == 1 and "dog" not in nouns.nouns(7)
    animals = nouns.under("animal")
    assert {"dog", "poodle", "house sparrow", "kitten", "human"} <= animals and "ambulance" not in animals
    assert "jack" not in animals  # its first meaning is a tool
    plurals = [nouns.plural(noun) for noun in ("house mouse", "wolf", "grizzly", "finch", "goose", "day", "poodle")]
    assert plurals == ["house mice", "wolves", "grizzlies", "finches", "geese", "days", "poodles"]
    with pytest.raises(UserError, match="has no noun 'quux'"):
        nouns.under("quux")
    with pytest.raises(UserError, match="apt-get install wordnet-base"):
        find_wordnet("/nowhere")


def test_the_animals_that_come_along() -> None:
    animals = read_words(ANIMALS)
    for animal in COCO_ANIMALS:
        assert animals.find(f"Two photos of a {animal.upper()}, on grass") == animal
    for caption in ("a wolfhound-like dog's head", "mice", "three GEESE", "a golden retriever", "star-nosed mole"):
        assert animals.find(caption)
    for caption in ("a man and a woman", "people on a beach", "a catalogue of dogma", "a red car", "young queen", ""):
        assert animals.find(caption) is None
    assert WordList(["bear", "polar bear"]).find("the polar bear") == "polar bear"  # the longest match


def test_word_lists_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(UserError, match=r"empty\.txt: contains no words"):
        read_words(tmp_path / "empty.txt")
    with pytest.raises(UserError, match=r"word list .*none\.txt: no such file"):
        read_words(tmp_path / "none.txt")
    tools.words(str(tmp_path / "list.txt"), "vehicle", wordnet=str(EXCERPT))
    assert read_words(tmp_path / "list.txt").find("an ambulance") == "ambulance"


CAPTIONS = ["a red car", "my dog", "rex plays fetch", "a sunset", "nemo swims", "an unclear one", "two chairs"]


def opinion(text: str) -> str:
    """Answers like a model that knows two names, fails on one caption, and puts its JSON into a code block."""
    given = json.loads(text.split("Input: ")[1])
    sentences = [each["sentence"] if isinstance(each, dict) else each for each in given]
    if any("unclear" in sentence for sentence in sentences):
        return "I would rather not."
    found = [next((name for name in ("rex", "nemo") if name in sentence), "") for sentence in sentences]
    answer = [{"contains_animals": "yes" if name else "no", "reason": name} for name in found]
    for entry, each in zip(answer, given, strict=True):
        entry |= {"id": each["id"]} if isinstance(each, dict) else {}
    return f"```json\n{json.dumps(answer)}\n```"


def test_captions_are_split_by_words_and_by_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "captions.txt").write_text("\n".join([*CAPTIONS, "a sunset"]) + "\n")
    out, source = tmp_path / "out", str(tmp_path / "captions.txt")
    tools.split(str(out), source)
    assert (out / "unseen.txt").read_text() == "my dog\n"
    with scripted(opinion) as asked:
        words = ("model=m", f"url={asked.url}")
        tools.split(str(out), source, *words, per_question=3, dry_run=True)
        assert not asked.answered and "2 questions for m" in capsys.readouterr().out
        tools.split(str(out), source, *words, per_question=3)
        found = verdicts(out)
        assert [found[caption].get("by") for caption in CAPTIONS] == [
            None, "words", "judge", None, "judge", "unclear", None
        ]  # fmt: skip
        assert found["rex plays fetch"] == {"unseen": True, "by": "judge", "word": "rex"}
        assert (out / "seen.txt").read_text().splitlines() == ["a red car", "a sunset", "two chairs"]
        counts = Counter(asked.answered)
        tools.split(str(out), source, *words, per_question=3)
        assert asked.answered == counts and verdicts(out) == found  # nothing is asked twice
        (tmp_path / "captions.txt").write_text("\n".join(["a new one", *CAPTIONS]) + "\n")
        tools.split(str(out), source, *words, per_question=2)
        new = asked.answered - counts  # a caption keeps its verdict, whatever the other captions are
        assert len(new) == 1 and "a new one" in next(iter(new)) and "sunset" not in next(iter(new))
        (tmp_path / "captions.txt").write_text("\n".join([*CAPTIONS, "a sunset"]) + "\n")
        tools.split(str(out), source, *words, per_question=3)
    first = next(question for question in counts if "a red car" in question)
    assert first.startswith(
        "Read each of the following sentences and determine if it contains a reference to an animal."
    )
    assert "contains_animals" in first and "the animal name if 'yes'" in first
    report = json.loads((out / "split.json").read_text())
    assert (report["captions"], report["seen"], report["judge"], report["dropped"]) == (7, 3, 2, {"duplicate": 1})


def make_blip(folder: Path) -> None:
    """Saves a small BLIP with random weights in the format of the published ones."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *(f"thing{n}" for n in range(26))]
    (folder / "words.txt").parent.mkdir(parents=True)
    (folder / "words.txt").write_text("\n".join(words))
    tokenizer = BertTokenizer(str(folder / "words.txt"), bos_token="[DEC]")
    text = {
        "vocab_size": 32, "hidden_size": 16, "encoder_hidden_size": 16, "intermediate_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "bos_token_id": 5, "sep_token_id": 3, "eos_token_id": 3,
        "pad_token_id": 0, "initializer_range": 1.0,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 16, "initializer_range": 1.0,
    }  # fmt: skip
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision))
    model.save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)


def test_images_show_what_their_captions_do_not_name(world: Path, tmp_path: Path) -> None:
    make_blip(tmp_path / "blip")
    (tmp_path / "no words.txt").write_text("nothing of the kind\n")
    package = Path(__file__).parents[3] / "data/digits"
    more = {
        "cache": str(world / "runs/demo/cache"),
        "teacher": str(package / "models/teacher"),
        "blip": str(tmp_path / "blip"),
    }
    out, source = tmp_path / "out", str(package / "captions.txt")
    tools.split(str(out), source, words=str(tmp_path / "no words.txt"), **more)
    found = verdicts(out)
    described = {caption: verdict["blip"] for caption, verdict in found.items() if "blip" in verdict}
    assert len(described) == 96 and len(found) == 3200  # the captions that have an image
    journal = (out / "blip.jsonl").read_bytes()
    described = {caption: texts[0] for caption, texts in described.items()}
    common = Counter(text.split()[0] for text in described.values() if text).most_common(1)[0][0]
    (tmp_path / "words.txt").write_text(f"{common}\n")
    tools.split(str(out), source, words=str(tmp_path / "words.txt"), **more)
    assert (out / "blip.jsonl").read_bytes() == journal  # no image is captioned twice
    unseen = {caption for caption, verdict in verdicts(out).items() if verdict["unseen"]}
    assert unseen == {caption for caption, text in described.items() if common in text.split()} and unseen
    with pytest.raises(UserError, match="must be given together"):
        tools.split(str(out), source, blip="x")


def write_coco(folder: Path) -> None:
    folder.mkdir()
    images = [{"id": n, "file_name": f"COCO_val2014_{n:012d}.jpg"} for n in range(1, 6)]
    categories = [
        {"id": 18, "name": "dog", "supercategory": "animal"},
        {"id": 3, "name": "car", "supercategory": "vehicle"},
    ]
    objects = [
        {"id": 1, "image_id": 2, "category_id": 18},
        {"id": 2, "image_id": 2, "category_id": 3},
        {"id": 3, "image_id": 3, "category_id": 3},
        {"id": 4, "image_id": 5, "category_id": 18},
    ]
    captions = [
        {"id": 90 - 10 * n - m, "image_id": n, "caption": f"image {n},\n caption {m} "}
        for n in range(1, 6)
        for m in (0, 1)
    ]
    (folder / "instances_val2014.json").write_text(
        json.dumps({"images": images, "categories": categories, "annotations": objects})
    )
    (folder / "captions_val2014.json").write_text(json.dumps({"images": images, "annotations": captions}))


def test_coco_is_split_by_supercategory(tmp_path: Path) -> None:
    write_coco(tmp_path / "annotations")
    with (tmp_path / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "text"), ("COCO_val2014_000000000003.jpg", "the published one")])
    counts = split_coco(tmp_path / "annotations", tmp_path / "out", "animal", tmp_path / "metadata.csv")
    assert counts == {"all": 5, "seen": 3, "unseen": 2}
    with (tmp_path / "out/seen.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["caption"] for row in rows] == ["image 1, caption 1", "the published one", "image 4, caption 1"]
    with pytest.raises(UserError, match="unknown supercategory 'plant'; known: animal, vehicle"):
        split_coco(tmp_path / "annotations", tmp_path / "out", "plant", None)
    with pytest.raises(UserError, match="1 images are not in val2014"):
        (tmp_path / "other.csv").write_text("file_name,caption\nx.jpg,y\n")
        split_coco(tmp_path / "annotations", tmp_path / "out", "animal", tmp_path / "other.csv")
    (tmp_path / "annotations/captions_val2014.json").write_text("{}")
    with pytest.raises(UserError, match="not a COCO annotation file"):
        split_coco(tmp_path / "annotations", tmp_path / "out", "animal", None)
