"""1,000 questions to an endpoint that mixes all troubles: one outcome each, none asked without need, over kill -9."""

import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from randcond.data.concepts import concepts_command as concepts
from randcond.data.texts import datafree_command as datafree
from randcond.data.texts.llm import CONTROL, Question
from tests.support import warm
from tests.support.endpoint import Said, completion, scripted

RETRIES, CONCURRENCY = 2, 16
ERROR = {"error": {"message": "overloaded", "code": 503}}


class Kind(NamedTuple):
    """A kind of question: the replies to its tries (the last one repeats), its outcome, how often it is asked."""

    share: float  # relative frequency
    replies: list[str | Said]
    outcome: bool | str
    times: int


KINDS = {
    "yes": Kind(30, ["Yes, it can."], True, 1),
    "no": Kind(25, ["No, it is abstract."], False, 1),
    "reasoning": Kind(4, ["<think>Yes? No.</think>\n\n**Yes**"], True, 1),
    "reasoning without a beginning": Kind(3, ["Yes?</think>No."], False, 1),
    "reasoning without an end": Kind(2, ["<think>Yes", "No."], False, 2),
    "cut off": Kind(2, [Said(completion("No", "length")), "Yes."], True, 2),
    "filtered": Kind(2, [Said(completion("", "content_filter")), "No."], False, 2),
    "parts": Kind(2, [Said(completion([{"type": "text", "text": "Yes."}]))], True, 1),
    "no usage": Kind(2, [Said(completion("No.", usage=None))], False, 1),
    "no message": Kind(2, [Said({"choices": [{"message": None}]}), "Yes."], True, 2),
    "no choice": Kind(2, [Said({"choices": []}), "No."], False, 2),
    "unclear": Kind(4, ["Perhaps."], "unusable", 3),
    "no content": Kind(1, [Said(completion(None))], "unusable", 3),
    "400": Kind(4, [Said({"error": {"message": "no", "code": "content_filter"}}, 400)], "refused", 1),
    "refusal": Kind(2, [Said(completion(None, refusal="I'm sorry."))], "refused", 1),
    "429": Kind(2, [Said(ERROR, 429, {"Retry-After": "0.3"}), "Yes."], True, 2),
    "500": Kind(2, [Said(ERROR, 500), "No."], False, 2),
    "web page": Kind(1, [Said("<html>not here</html>"), "Yes."], True, 2),
    "error in place of choices": Kind(1, [Said(ERROR), "No."], False, 2),
    "error inside a choice": Kind(1, [Said({"choices": [{"error": ERROR["error"]}]}), "Yes."], True, 2),
    "cut connection": Kind(1, [Said(completion("Yes."), cut=True), "No."], False, 2),
    "byte by byte": Kind(1, [Said(completion("No."), every=0.1), "Yes."], True, 2),
    "always 500": Kind(0.5, [Said(ERROR, 500)], "unusable", RETRIES + 2),
}


@pytest.mark.heavy
@pytest.mark.parametrize("questions", [400, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_thousand_questions(questions: int, tmp_path: Path) -> None:
    noun_of, kind_of = {}, {}
    kinds = random.Random(29).choices(list(KINDS), [kind.share for kind in KINDS.values()], k=questions)
    assert set(kinds) == set(KINDS)
    for number, kind in enumerate(kinds):
        text = datafree.VISUAL.format(noun=f"noun{number}")
        noun_of[Question(datafree.SYSTEM, text).id], kind_of[text] = f"noun{number}", KINDS[kind]
    (tmp_path / "nouns.txt").write_text("\n".join(noun_of.values()) + "\n")
    tries: Counter[str] = Counter()

    def answer(text: str) -> str | Said:
        tries[text] += 1
        replies = kind_of[text].replies if text in kind_of else ["yes"]
        return replies[min(tries[text], len(replies)) - 1]

    def outcomes() -> dict[str, bool | str]:
        """Returns noun -> outcome, as the complete lines of the journal say. Each question has one line."""
        lines = (tmp_path / "visual.jsonl").read_text().split("\n")[1:-1]
        entries = [json.loads(line) for line in lines]
        found = {noun_of[entry["id"]]: entry.get("answer", "refused" if "refused" in entry else "unusable")
                 for entry in entries}  # fmt: skip
        assert len(found) == len(entries)
        return found

    with scripted(answer) as asked:
        settings = ["model=m", f"url={asked.url}", f"retries={RETRIES}", "timeout=2", f"concurrency={CONCURRENCY}"]
        command = warm.Command("randcond.launch.cli", ["datafree", "visual", str(tmp_path), *settings], Path.cwd())
        process = warm.Process(command)
        while len(asked.requests) < questions // 2:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -9
        before, known = Counter(asked.requests), outcomes()
        again = warm.run([command])[0]
        assert again.returncode == 0, again.stderr
        asked.requests.pop(CONTROL[1], None)

    found = outcomes()
    expected = {noun: kind_of[text].outcome for noun, text in zip(noun_of.values(), kind_of, strict=True)}
    assert found == expected
    visual = [noun for noun, outcome in expected.items() if outcome is True]
    assert (tmp_path / "visual.txt").read_text().split() == visual

    text_of = dict(zip(noun_of.values(), kind_of, strict=True))
    assert all(asked.requests[text_of[noun]] == before[text_of[noun]] for noun in known)  # none is asked again
    other = [noun for noun, text in text_of.items() if asked.requests[text] != kind_of[text].times]
    assert len(other) <= CONCURRENCY and not set(other) & set(known)  # only those on their way when it was killed

    totals = re.search(
        rf"{questions:,} questions: (\d+) answered, (\d+) unusable, (\d+) refused, (\d+) already known", again.stdout
    )
    assert totals, again.stdout
    answered, unusable, refused, already = map(int, totals.groups())
    assert answered + unusable + refused + already == questions and already == len(known)
    count = Counter(outcome if isinstance(outcome, str) else "answered" for outcome in found.values())
    first = Counter(outcome if isinstance(outcome, str) else "answered" for outcome in known.values())
    assert (answered, unusable, refused) == tuple(
        count[each] - first[each] for each in ("answered", "unusable", "refused")
    )
    print(f"\n{totals[0]}; in both runs: {dict(count)}; asked {asked.requests.total():,} times, "
          f"{len(other)} questions on their way at the kill")  # fmt: skip
    assert f"{count['unusable'] + count['refused']} nouns are left out" in again.stdout


ANIMALS = ("dog", "cat", "horse", "wolf")
PLACES = ("car", "chair", "lamp", "house", "tree")


def rows_of(text: str) -> tuple[list[dict[str, str]], bool]:
    """Returns the right answer to a question about captions, with the captions; and whether they have ids."""
    given = json.loads(text.split("Input: ")[1])
    with_ids = isinstance(given[0], dict)
    rows = []
    for each in given:
        sentence = each["sentence"] if with_ids else each
        animal = next((word for word in ANIMALS if word in sentence), "")
        identity = {"id": each["id"]} if with_ids else {}
        rows.append({**identity, "contains_animals": "yes" if animal else "no", "reason": animal, "sentence": sentence})
    return rows, with_ids


def drop(rows: list[dict[str, str]], *names: str) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if name not in names} for row in rows]


def rotate(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Returns the rows with each verdict at the next caption's id."""
    moved = [*rows[1:], rows[0]]
    return [
        {**other, "id": row["id"]} for row, other in zip(drop(rows, "sentence"), drop(moved, "sentence"), strict=True)
    ]


Wrong = Callable[[list[dict[str, str]], random.Random], str]
WRONG: tuple[Wrong, ...] = (
    lambda rows, _: json.dumps(drop(rows, "sentence")),
    lambda rows, draw: json.dumps(draw.sample(drop(rows, "sentence"), len(rows))),
    lambda rows, draw: json.dumps(draw.sample(drop(rows, "sentence", "id"), len(rows))),
    lambda rows, draw: json.dumps(draw.sample(drop(rows, "id"), len(rows))),
    lambda rows, draw: json.dumps(draw.sample(drop(rows, "sentence"), len(rows) - 3)),
    lambda rows, draw: json.dumps(draw.choices(drop(rows, "sentence"), k=len(rows))),
    lambda rows, _: json.dumps(drop(rows, "sentence"))[: -100],
    lambda rows, _: json.dumps(rotate(rows)),
    lambda rows, _: "I would rather not.",
)  # fmt: skip


@pytest.mark.heavy
def test_a_thousand_captions_are_judged_by_a_model_that_gives_its_answers_in_any_form(tmp_path: Path) -> None:
    """No caption of an animal is seen, and no other caption is unseen, but for those that are refused."""
    draw = random.Random(29)
    captions = [f"a {draw.choice(PLACES)} and a {draw.choice((*PLACES, *ANIMALS))} number {n}" for n in range(1000)]
    forbidden = {captions[500], captions[700]}
    (tmp_path / "captions.txt").write_text("\n".join(captions) + "\n")
    (tmp_path / "words.txt").write_text("nothing of the kind\n")

    def answer(text: str) -> str | Said:
        rows, with_ids = rows_of(text)
        if any(row["sentence"] in forbidden for row in rows):
            return Said({"error": {"message": "no", "code": "content_filter"}}, 400)
        if not with_ids:
            return json.dumps(drop(rows, "sentence"))
        chosen = random.Random(text)  # the same question gets the same answer
        return f"<think>[no, no]</think>```json\n{chosen.choice(WRONG)(rows, chosen)}\n```"

    out, settings = tmp_path / "out", {"words": str(tmp_path / "words.txt"), "per_question": 20}
    with scripted(answer, delay=0) as asked:
        words = ("model=m", f"url={asked.url}")
        concepts.split(str(out), str(tmp_path / "captions.txt"), *words, **settings)
        times = asked.requests.total()
        concepts.split(str(out), str(tmp_path / "captions.txt"), *words, **settings)
        assert asked.requests.total() == times  # nothing is asked twice
    animals = {caption for caption in captions if any(word in caption for word in ANIMALS)}
    seen = (out / "seen.txt").read_text().splitlines()
    assert set(seen) == set(captions) - animals - forbidden and len(seen) == len(set(seen))
    report = json.loads((out / "split.json").read_text())
    assert report["unclear"] == 2 and report["judge"] == len(animals - forbidden)
    print(f"\n1,000 captions in {times:,} questions: {report}")
