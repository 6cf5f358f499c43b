"""Odd answers of a judge: which captions get a verdict, and which are asked about again."""

import json
from pathlib import Path

import pytest

from randcond.data.concepts.judge import Judge, _short_ids
from randcond.data.concepts.verdicts import Verdict, read_verdict, read_verdicts
from randcond.data.texts.endpoint import Endpoint
from randcond.data.texts.journal import Journal
from tests.support.endpoint import scripted

# Three captions with ids, of which the second names a dog.
CAPTIONS = {"s1": "a red car", "s2": "my dog", "s3": "two chairs"}
KEYS = ("contains_animals", "contains_animal")
NO, YES = Verdict(False, "", "id"), Verdict(True, "dog", "id")


def entries(*rows: tuple[str, ...], key: str = "contains_animals", name: str = "id") -> str:
    """Returns an answer in JSON. Each row: (id, yes or no, reason); an empty id is left out."""
    return json.dumps([({name: row[0]} if row[0] else {}) | {key: row[1], "reason": row[2]} for row in rows])


RIGHT = [("s1", "no", ""), ("s2", "yes", "dog"), ("s3", "no", "")]
ALL = {"s1": NO, "s2": YES, "s3": NO}
JUDGED = {
    "in order": (entries(*RIGHT), ALL),
    "in another order": (entries(RIGHT[1], RIGHT[2], RIGHT[0]), ALL),
    "in another order, without ids": (entries(("", "yes", "dog"), ("", "no", ""), ("", "no", "")),
                                      {"s2": Verdict(True, "dog", "word")}),
    "without ids and without a yes": (entries(("", "no", ""), ("", "no", ""), ("", "no", "")), {}),
    "captions repeated": (entries(("two chairs", "no", ""), ("My dog", "yes", "dog"), name="sentence"),
                          {"s2": Verdict(True, "dog", "sentence"), "s3": Verdict(False, "", "sentence")}),
    "id and another caption": (json.dumps([{"id": "s1", "sentence": "my dog", "contains_animals": "no"}]), {}),
    "one is missing": (entries(*RIGHT[:2]), {"s1": NO, "s2": YES}),
    "one twice": (entries(*RIGHT, ("s3", "no", "")), {"s1": NO, "s2": YES}),
    "one twice, once without an id": (entries(*RIGHT[::2], ("s2", "no", ""), ("", "yes", "dog")), {"s1": NO, "s3": NO}),
    "unknown ids": (entries(("1", "no", ""), ("2", "yes", "dog"), ("3", "no", "")), {}),
    "one more": (entries(*RIGHT, ("s4", "no", "")), ALL),
    "a reason that is not there": (entries(("s1", "yes", "dog"), ("s3", "no", "")), {"s3": NO}),
    "shifted by one": (entries(("s1", "yes", "dog"), ("s2", "no", ""), ("s3", "no", "")), {"s3": NO}),
    "a yes without a reason": (entries(("s2", "yes", "")), {}),
    "reason in the plural": (entries(("s2", "yes", "dogs")), {"s2": Verdict(True, "dogs", "id")}),
    "reason in a phrase": (entries(("s2", "yes", "the word 'dog'")), {"s2": Verdict(True, "the word 'dog'", "id")}),
    "several reasons": (entries(("s2", "yes", "cat, dog")), {"s2": Verdict(True, "cat, dog", "id")}),
    "reasons as a list": (json.dumps([{"id": "s2", "contains_animals": "yes", "reason": ["dog"]}]), {"s2": YES}),
    "an article as the reason": (json.dumps([{"id": "s1", "contains_animals": "yes", "reason": "a"}]), {}),
    "reasoning, code fence": (f"Sure!\n```json\n{entries(*RIGHT)}\n```\nDone [1].", ALL),
    "one per line": ("\n".join(json.dumps(each) for each in json.loads(entries(*RIGHT))), ALL),
    "in a dictionary": (json.dumps({"answers": json.loads(entries(*RIGHT))}), ALL),
    "cut off": (entries(*RIGHT)[:-30], {"s1": NO, "s2": YES}),
    "true and false": (entries(*RIGHT).replace('"yes"', "true").replace('"no"', "false"), ALL),
    "upper case": (entries(("S2", "Yes.", "DOG")), {"s2": Verdict(True, "DOG", "id")}),
    "the key in the singular": (entries(*RIGHT, key="contains_animal"), ALL),
    "the key with spaces": (entries(*RIGHT, key="Contains Animals"), ALL),
    "maybe": (entries(("s1", "maybe", ""), ("s2", "yes", "dog")), {"s2": YES}),
    "null": (json.dumps([{"id": None, "contains_animals": None, "reason": None}, None, 3]), {}),
    "no JSON": ("1. no\n2. yes (dog)\n3. no", {}),
    "deep": ("[" * 100_000 + '{"a":' * 20_000, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", JUDGED)
def test_judged_captions(name: str) -> None:
    answer, verdicts = JUDGED[name]
    assert read_verdicts(answer, KEYS, CAPTIONS) == verdicts


SINGLE = {
    "no": (entries(("", "no", "")), Verdict(False, "", "alone")),
    "yes": (entries(("", "yes", "dog")), Verdict(True, "dog", "alone")),
    "no list": (entries(("", "yes", "dog")).strip("[]"), Verdict(True, "dog", "alone")),
    "two that agree": (entries(("", "yes", "pet"), ("", "yes", "dog")), Verdict(True, "dog", "alone")),
    "two that don't": (entries(("", "yes", "dog"), ("", "no", "")), None),
    "a reason that is not there": (entries(("", "yes", "puppy")), None),
    "neither": (entries(("", "maybe", "")), None),
    "an empty list": ("[]", None),
    "words": ("No.", None),
    "no verdict": ('[{"reason": "dog"}]', None),
    "a list of numbers": ("[1]", None),
}


@pytest.mark.parametrize("name", SINGLE)
def test_a_single_judged_caption(name: str) -> None:
    answer, verdict = SINGLE[name]
    assert read_verdict(answer, KEYS, "my dog") == verdict


REASONS = {  # reason, caption -> whether the reason is in the caption
    ("fox -> animal", "a red fox"): True,
    ("fox => an animal", "a red fox"): True,
    ("'fox' → animal", "two foxes"): True,
    ("fox (an animal)", "a red fox"): True,
    ('"fox" (an animal)', "a red fox"): True,
    ("The word 'horses' refers to an animal", "two horses"): True,
    ("The word horses refers to an animal", "a horse"): True,
    ("The word “horses” is an animal", "a horse"): True,
    ("horses: animal", "two horses"): True,
    ("'horse': animal", "two horses"): True,
    ("animal: horse", "two horses"): True,
    ("fox – animal", "a red fox"): True,
    ("fox - animal", "a red fox"): True,
    ("fox = animal", "a red fox"): True,
    ("**fox**", "a red fox"): True,
    ("`fox`", "a red fox"): True,
    ("fox is a kind of animal", "a red fox"): True,
    ("a fox, which is an animal", "a red fox"): True,
    ("The sentence mentions a fox", "a red fox"): True,
    ("It contains the word fox.", "a red fox"): True,
    ("reference to a cow in the field", "a cow"): True,
    ("golden retrievers (dogs)", "a golden retriever"): True,
    ("mice", "a mouse"): True,
    ("animal", "an animal"): True,
    ("animals", "an animal"): True,
    ("fox -> animal", "a toy animal"): False,
    ("fox (an animal)", "a toy animal"): False,
    ("The word 'fox' refers to an animal", "a toy animal"): False,
    ("the word 'fox', not 'car'", "a van"): False,
    ("The sentence mentions a fox", "a sentence on a wall"): False,
    ("fox", "a foxglove"): False,
    ("->", "a red fox"): False,
    ("''", "a red fox"): False,
}


@pytest.mark.parametrize(("reason", "caption"), REASONS)
def test_the_reason_of_a_yes_is_found_in_the_caption(reason: str, caption: str) -> None:
    answer = json.dumps([{"contains_animals": "yes", "reason": reason}])
    expected = Verdict(True, reason, "alone") if REASONS[reason, caption] else None
    assert read_verdict(answer, KEYS, caption) == expected
    answer = entries(("s1", "yes", reason), ("s2", "no", ""))
    found = read_verdicts(answer, KEYS, {"s1": caption, "s2": "an empty room"})
    assert found == ({"s1": Verdict(True, reason, "id")} if expected else {}) | {"s2": NO}


def judge(folder: Path, url: str, size: int = 3) -> Judge:
    return Judge(Endpoint(model="m", url=url, concurrency=1), folder / "judge.jsonl", "animal", "animals", size)


def test_what_cannot_be_matched_is_asked_singly_and_only_once(tmp_path: Path) -> None:
    """A model that repeats no ids: the yes is matched by its word, the others are asked one by one."""
    captions = ["a red car", "rex plays", "two chairs", "my dog"]

    def answer(text: str) -> str:
        given = [each["sentence"] if isinstance(each, dict) else each for each in json.loads(text.split("Input: ")[1])]
        rows = [("", "yes", "dog") if "dog" in each or "rex" in each else ("", "no", "") for each in given]
        return entries(*reversed(rows))

    with scripted(answer, delay=0) as asked:
        found = judge(tmp_path, asked.url, size=4).judge(captions, "judge")
        assert found == {
            "a red car": Verdict(False, "", "alone"), "rex plays": None, "two chairs": Verdict(False, "", "alone"),
            "my dog": Verdict(True, "dog", "alone"),
        }  # fmt: skip
        assert sum(asked.requests.values()) == 3 + 3 + 1 + 1 + 1  # the four, "rex plays", the others
        assert judge(tmp_path, asked.url, size=4).judge(captions, "judge") == found
        assert judge(tmp_path, asked.url, size=2).judge(captions[1:], "judge") == {
            caption: found[caption] for caption in captions[1:]
        }
        assert sum(asked.requests.values()) == 9


def test_journals_of_older_versions_are_used_where_they_can_be_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = ["a red car", "my dog", "two chairs", "a cat", "rex plays"]
    ours = judge(tmp_path, "http://localhost:1/v1", size=5)
    old = {  # answers matched by position; the second one was about one caption
        "batch": {"a red car": (False, ""), "my dog": (True, "dog"), "two chairs": (True, "cat")},
        "alone": {"a cat": (False, "")},
        "alone too": {"rex plays": (True, "dog")},
    }
    journal = Journal(tmp_path / "judge.jsonl", "m")
    for name, verdicts in old.items():
        only = next(iter(verdicts))
        id = ours._question([only], [ours._id(only)]).id if len(verdicts) == 1 else name
        journal.add(id, {ours._id(caption): verdict for caption, verdict in verdicts.items()})
    journal.close()
    with scripted(
        lambda text: entries(*((each["id"], "no", "") for each in json.loads(text.split("Input: ")[1])))
    ) as asked:
        found = judge(tmp_path, asked.url, size=5).judge(captions, "judge")
    assert found == {
        "a red car": Verdict(False, "", "id"), "my dog": Verdict(True, "dog"), "two chairs": Verdict(False, "", "id"),
        "a cat": Verdict(False, ""), "rex plays": None,
    }  # fmt: skip
    assert len(asked.requests) == 1 and "my dog" not in next(iter(asked.requests))
    assert "2 verdicts" in capsys.readouterr().out


def test_short_ids_are_distinct() -> None:
    assert _short_ids(["1f3a77", "1f3a78"]) == {"1f3a77": "s1f3a77", "1f3a78": "s1f3a78"}
