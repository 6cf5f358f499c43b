"""GenEval 2: questions, answers and scores are those of its own script; bad files and odd judges are named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import gmean
from transformers import AutoModelForImageTextToText, AutoProcessor

from randcond.eval.checks import check_evaluation
from randcond.eval.geneval2.judge import Judge, load_judge
from randcond.eval.geneval2.questions import Item, Question, read_items
from randcond.eval.geneval2.soft_tifa import soft_tifa
from randcond.eval.images.protocol_images import to_picture
from randcond.eval.scores.bootstrap import load_influence
from randcond.eval.stage import run
from randcond.eval.tables.collect import collect
from randcond.eval.tables.table import table
from randcond.launch.config.paths import PACKAGE
from randcond.launch.errors import UserError
from tests.support.judges import judge_folder
from tests.support.networks import digit_images
from tests.unit.eval.test_evaluation import system

LINES = [
    {
        "prompt": "a red three on black",
        "atom_count": 3,
        "vqa_list": [["How many threes are in the image?", "one"], ["Is the three red?", "Yes"]],
        "skills": ["count", "attribute"],
    },
    {
        "prompt": "a green seven on white",
        "atom_count": 4,
        "vqa_list": [
            ["Are there any sevens in the image?", "Yes"],
            ["Is the seven on the white?", "Yes"],
            ["Is the seven running?", "Yes"],
        ],
        "skills": ["object", "position", "verb"],
    },
]


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return judge_folder(tmp_path_factory.mktemp("judge"))


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("Are there any pigs?", "Yes", {"Yes", "yes", " Yes", " yes"}),
        ("How many pigs are there?", "seven", {"seven", "Seven", " seven", " Seven", "7", " 7"}),
        ("How many pigs are there?", "ten", {"ten", "Ten", " ten", " Ten", "10", " 10"}),
        ("How many pigs are there?", "twelve", {"twelve", "Twelve", " twelve", " Twelve", "other", " other"}),
    ],
)
def test_the_texts_that_count_as_correct(text: str, answer: str, expected: set[str]) -> None:
    assert set(Question(text, answer, "count").answers) == expected


def test_hand_made_answers_give_the_published_scores() -> None:
    items = read_hand_made()
    scores, values = soft_tifa(items, [[0.5, 0.9], [1.0, 0.2, 0.0]])
    assert scores["geneval2_am"] == pytest.approx((0.7 + 0.4) / 2)
    assert scores["geneval2"] == pytest.approx((gmean([0.5, 0.9]) + 0) / 2)  # a probability of 0 makes an image's GM 0
    expected = {"object": 1.0, "attribute": 0.9, "count": 0.5, "position": 0.2, "verb": 0.0}
    assert scores["geneval2_skills"] == pytest.approx(expected)
    assert scores["geneval2_atoms"] == pytest.approx({"3": gmean([0.5, 0.9]), "4": 0.0})
    assert values["geneval2"].tolist() == pytest.approx([gmean([0.5, 0.9]), 0.0])
    whole, _ = soft_tifa(items[:1], [[1.0, 1.0]])
    assert whole["geneval2"] == whole["geneval2_am"] == 1.0 and set(whole["geneval2_skills"]) == {"count", "attribute"}


def read_hand_made() -> list[Item]:
    return [
        Item(
            str(line["prompt"]),
            int(line["atom_count"]),  # type: ignore[call-overload]
            tuple(Question(*pair, skill) for pair, skill in zip(line["vqa_list"], line["skills"], strict=True)),  # type: ignore[call-overload]
        )
        for line in LINES
    ]


@pytest.mark.heavy
def test_the_judge_is_asked_as_published(judge: Path) -> None:
    """200 images: greedy decoding of one token, and the probabilities of the first tokens of the answers added up."""
    ours = load_judge(str(judge), "cpu")
    model, processor = AutoModelForImageTextToText.from_pretrained(judge).eval(), AutoProcessor.from_pretrained(judge)
    questions = [question for item in read_hand_made() for question in item.questions]
    found = []
    for number, image in enumerate(digit_images(200)):
        picture, question = to_picture(image), questions[number % len(questions)]
        content = [
            {"type": "image", "image": picture},
            {"type": "text", "text": f"{question.text} Answer in one word."},
        ]
        options = {"tokenize": True, "add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
        inputs = processor.apply_chat_template([{"role": "user", "content": content}], **options)
        steps = {"max_new_tokens": 1, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
        out = model.generate(**inputs, **steps)
        probabilities = torch.nn.functional.softmax(out.scores[0], dim=-1)
        if question.skill == "count":
            answers = ["one", "One", " one", " One", "1", " 1"]
        else:
            answers = ["Yes", "yes", " yes", " Yes"]
        expected = sum(probabilities[0, processor.tokenizer.encode(answer)[0]].item() for answer in answers)
        answer = ours.ask(picture, question)
        assert answer.probability == pytest.approx(expected, abs=1e-5)
        assert answer.token == int(out.sequences[0, -1])
        found.append(answer.probability)
    assert torch.tensor(found).std() > 1e-4


class Words:
    """A tokenizer whose tokens are whole texts."""

    def __init__(self) -> None:
        self.known: list[str] = []

    def encode(self, text: str) -> list[int]:
        if text not in self.known:
            self.known.append(text)
        return [self.known.index(text)]

    def decode(self, tokens: list[int]) -> str:
        return self.known[tokens[0]]


class Processor:
    def __init__(self) -> None:
        self.tokenizer = Words()


def test_answers_in_other_words_are_told() -> None:
    processor = Processor()
    judge = Judge(None, processor, "a judge")
    tokens = [processor.tokenizer.encode(word)[0] for word in ("Yes", "no", " seven", "7", "I", "I", "Sorry")]
    said = judge.warnings(tokens)
    assert len(said) == 1 and "began 3 of 7 answers" in said[0] and "('I', 'Sorry')" in said[0]
    assert judge.warnings(tokens[:4]) == [] and judge.warnings([*tokens[:4] * 10, tokens[4]]) == []


@pytest.mark.heavy
def test_a_network_is_drawn_and_judged(judge: Path, tmp_path: Path) -> None:
    words = [f"eval.geneval2.prompts={write(tmp_path / 'data.jsonl', LINES)}", f"eval.geneval2.judge={judge}"]
    config = system(tmp_path, *words, "eval.size=2", "eval.batch=2", "eval.metrics=[digits]")
    check_evaluation(config)
    run(config)
    path = tmp_path / "out" / "geneval2" / "scores.json"
    found = json.loads(path.read_text())
    assert 0 < found["scores"]["geneval2"] <= found["scores"]["geneval2_am"] < 1
    assert (
        "in other words" not in found["notes"][0] and "with other words than yes, no or a number" in found["notes"][0]
    )
    assert found["protocol"]["images"] == "as drawn"
    low, high = found["intervals"]["all"]["geneval2"]
    assert low <= found["scores"]["geneval2"] <= high
    before = path.stat().st_mtime_ns
    run(config)
    assert path.stat().st_mtime_ns == before
    row = collect(None, {config.name: config})[0]
    assert row.scores["all"]["geneval2"] == found["scores"]["geneval2"]
    assert any(note.startswith("GenEval 2: the judge began") for note in row.notes)
    assert row.protocol["geneval2"]["extractors"]["geneval2"].startswith(str(judge))
    assert "GenEval 2 (GM)↑, all" in table([row])[0]
    own = {key for key in load_influence(tmp_path / "out") if "geneval" in key[1]}  # the others are of the digits
    assert own == {("all", "geneval2"), ("all", "geneval2_am")}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"skills": ["count"]}, r"line 2: is no prompt of GenEval 2 \(it has 3 questions and 1 skills\)"),
        ({"skills": ["count", "taste", "object"]}, r"line 2: is no prompt of GenEval 2 \(unknown skill 'taste'\)"),
        ({"atom_count": "many"}, r"line 2: is no prompt of GenEval 2 \(invalid literal"),
        ({"vqa_list": [["one?"]] * 3}, r"line 2: is no prompt of GenEval 2 \(not enough values"),
    ],
)
def test_a_damaged_line_is_named(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", [LINES[0], {**LINES[1], **change}])
    with pytest.raises(UserError, match=said):
        read_items(path)


def test_what_is_missing_is_named_in_the_check(judge: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", LINES)
    (tmp_path / "empty").mkdir()
    for words, said in (
        (["eval.geneval2.prompts=inputs/geneval2/none.jsonl"], "download it with `randcond fetch geneval2`"),
        ([f"eval.geneval2.prompts={data}", f"eval.geneval2.judge={tmp_path / 'empty'}"], r"has no config\.json, tok"),
        ([f"eval.geneval2.prompts={data}", "eval.geneval2.judge=./none/at/all"], "there is no folder ./none/at/all"),
    ):
        with pytest.raises(UserError, match=said):
            check_evaluation(system(tmp_path, *words))
    other = PACKAGE / "data/digits/models/teacher/text_encoder"
    with pytest.raises(UserError, match=r"eval\.geneval2\.judge: .* has no tokenizer_config\.json"):
        load_judge(str(other), "cpu")


@pytest.mark.parametrize(
    ("kind", "said"), [("qwen3", "its model type is qwen3, expected qwen3_vl"), ("clip", "can't be loaded as Auto")]
)
def test_a_judge_of_another_kind_is_named(kind: str, said: str, judge: Path, tmp_path: Path) -> None:
    copy = tmp_path / "judge"
    copy.mkdir()
    for path in judge.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": kind}))
    with pytest.raises(UserError, match=rf"eval\.geneval2\.judge: .*{said}"):
        load_judge(str(copy), "cpu")
