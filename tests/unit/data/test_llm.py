"""Each question to a language model is answered once, despite errors, kills and restarts on both sides."""

import json
import os
import signal
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from randcond.data.texts import datafree_command as datafree
from randcond.data.texts.answers import read_prompts, read_verdict
from randcond.data.texts.datafree_command import even_shares
from randcond.data.texts.endpoint import Endpoint, estimate, read_endpoint
from randcond.data.texts.journal import Journal
from randcond.data.texts.llm import Question, ask
from randcond.data.texts.replies import Answer, Unusable
from randcond.launch.errors import UserError
from tests.support import warm
from tests.support.endpoint import Asked, Said, scripted

QUESTIONS = [Question("be brief", f"question {number}") for number in range(60)]
ANY = Question("", "")


def take(question: Question, answer: Answer) -> str:
    """Returns the text of an answer. Raises Unusable if it contains "mumble"."""
    if "mumble" in answer.text:
        raise Unusable
    return answer.text


def test_every_question_is_answered_once_whatever_goes_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    trouble = {2: 429, 5: 500, 9: 503, 14: 0, 20: 408}
    with scripted(lambda text: f"to {text}", trouble) as asked:
        endpoint = Endpoint(model="m", url=asked.url, key="MY_KEY", concurrency=7)
        kept = ask(endpoint, QUESTIONS, tmp_path / "a.jsonl", take, 5, "asking")
        assert kept.answers == {question.id: f"to {question.user}" for question in QUESTIONS}
        assert set(asked.answered.values()) == {1} and 1 < asked.most_open <= 7
        assert asked.keys == {"Bearer secret"} and "secret" not in (tmp_path / "a.jsonl").read_text()
        assert kept.tokens == [7 * 60, 3 * 60]
        again = ask(endpoint, [*QUESTIONS, Question("be brief", "one more")], tmp_path / "a.jsonl", take, 5, "asking")
        assert sum(asked.answered.values()) == 61 and len(again.answers) == 61


def test_what_cannot_be_read_is_asked_again_and_given_up(tmp_path: Path) -> None:
    with scripted(lambda text: "mumble" if text.endswith(" 3") else "ok") as asked:
        endpoint = Endpoint(model="m", url=asked.url)
        kept = ask(endpoint, QUESTIONS[:6], tmp_path / "a.jsonl", take, 5, "asking")
        assert kept.unusable == {QUESTIONS[3].id} and asked.answered["question 3"] == 3
        ask(endpoint, QUESTIONS[:6], tmp_path / "a.jsonl", take, 5, "asking")
        assert asked.answered["question 3"] == 3


def test_limits_are_kept(tmp_path: Path) -> None:
    with scripted(str) as asked:
        endpoint = Endpoint(model="m", url=asked.url, rpm=600)  # ten per second
        began = time.monotonic()
        ask(endpoint, QUESTIONS[:30], tmp_path / "a.jsonl", take, 5, "asking")
        assert time.monotonic() - began > 1.5


@pytest.mark.heavy
def test_the_token_limit_holds_nothing_back_that_was_answered(tmp_path: Path) -> None:
    """The token limit lets only some questions through. Their answers are in the journal at once."""
    with scripted(lambda text: "word " * 200) as asked:
        words = f"""
import sys
from pathlib import Path
from tests.unit.data.test_llm import Endpoint, QUESTIONS, ask, take
ask(Endpoint(model="m", url="{asked.url}", tpm=40, concurrency=8), QUESTIONS, Path("{tmp_path}/a.jsonl"), take, 5, "x")
"""
        process = warm.Process(warm.Command("-c", [words], tmp_path))
        count, since = 0, time.monotonic()
        while not count or time.monotonic() - since < 3:  # until it waits because of the limit
            assert process.poll() is None, process.communicate()
            now = sum(asked.answered.values())
            if now != count:
                count, since = now, time.monotonic()
            time.sleep(0.05)
        process.kill()
        process.wait()
    kept = Journal(tmp_path / "a.jsonl", "m")
    assert 0 < len(kept.answers) == sum(asked.answered.values()) < 60


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ('{"error": {"message": "overloaded"}}', "an error in its reply: .*overloaded"),
        ("<html>not here</html>", "reply is not a chat completion"),
    ],
)
def test_a_reply_that_is_no_completion_is_no_answer(tmp_path: Path, said: str, message: str) -> None:
    with scripted(str, said=said) as asked:
        endpoint = Endpoint(model="m", url=asked.url, concurrency=2, retries=0)
        with pytest.raises(ConnectionError, match=message):
            ask(endpoint, QUESTIONS, tmp_path / "a.jsonl", take, 5, "asking")
    kept = Journal(tmp_path / "a.jsonl", "m")
    assert not kept.answers and not kept.unusable


def test_refusals_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(UserError, match="set the environment variable OPENAI_API_KEY, or give url="):
        ask(Endpoint(model="m"), QUESTIONS, tmp_path / "a.jsonl", take, 5, "asking")
    with (
        scripted(str, {1: 401}) as asked,
        pytest.raises(UserError, match=r"refuses the request: .*check model, url, "),
    ):
        ask(Endpoint(model="m", url=asked.url, concurrency=1), QUESTIONS, tmp_path / "b.jsonl", take, 5, "asking")
    refusal = Said({"error": {"message": "no", "code": "content_filter"}}, 400)
    with scripted(lambda text: refusal if text == QUESTIONS[2].user else text) as asked:
        ask(Endpoint(model="m", url=asked.url, concurrency=1), QUESTIONS[:4], tmp_path / "c.jsonl", take, 5, "asking")
    with pytest.raises(ConnectionError, match=r"no answer after 0 retries .* run the same command to resume"):
        endpoint = Endpoint(model="m", url=asked.url, concurrency=1, retries=0)
        ask(endpoint, QUESTIONS, tmp_path / "c.jsonl", take, 5, "asking")
    kept = Journal(tmp_path / "c.jsonl", "m")
    assert len(kept.answers) == 3 and kept.refused == {QUESTIONS[2].id}
    with pytest.raises(UserError, match="contains answers of m, expected other"):
        Journal(tmp_path / "c.jsonl", "other")
    with pytest.raises(UserError, match="modle: unknown key; did you mean 'model'"):
        read_endpoint(["modle=m"])


def test_the_estimate_counts_and_stops(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    endpoint = Endpoint(model="m", price_in=1, price_out=2, rpm=10)
    line = estimate(endpoint, 1000, 60, 1e6)
    assert line == "60 questions for m, about 0.00M tokens in, 60.00M out, $120.00, at least 6 min at this rate"
    with pytest.raises(UserError, match=r"above \$5, no question was sent"):
        ask(Endpoint(model="m", price_out=2, max_cost=5), QUESTIONS, tmp_path / "a.jsonl", take, 1e6, "asking")


@pytest.mark.parametrize("cut", [1, 30])
def test_a_journal_whose_last_line_was_cut_loses_that_line(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.jsonl"
    journal = Journal(path, "m")
    for question in QUESTIONS[:3]:
        journal.add(question.id, "yes")
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    seen = Journal(path, "m", read_only=True)  # keeps the line: another process may be writing it
    assert path.read_bytes() == whole[:-cut]
    again = Journal(path, "m")
    assert list(again.answers) == list(seen.answers) == [question.id for question in QUESTIONS[:2]]
    again.add(QUESTIONS[2].id, "yes")
    again.close()
    assert path.read_bytes() == whole
    path.write_text("{}\n")
    with pytest.raises(UserError, match="line 1: expected the name of the model"):
        Journal(path, "m")


NOUNS = [f"noun{number}" for number in range(80)]


def reply(text: str) -> str:
    """Answers questions about nouns: every third noun is abstract, and each noun gets eight prompts."""
    noun = text.split("'")[1]
    if text.startswith("Can"):
        return "No, it is abstract." if int(noun[4:]) % 3 == 0 else "**Yes** - it is a thing."
    return "\n".join(["Here you are:", *(f'{n}. "{noun} in style {n}"' for n in range(1, 9))])


def command(*words: str, asked: Asked) -> warm.Command:
    return warm.Command("randcond.launch.cli", [*words, "model=m", f"url={asked.url}", "concurrency=4"], Path.cwd())


@pytest.mark.heavy
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_captions_out_of_nothing_killed_in_the_middle(tmp_path: Path, sign: signal.Signals) -> None:
    """After Ctrl-C and SIGTERM no question is asked twice. After kill -9 only those with pending answers are."""
    (tmp_path / "nouns.txt").write_text("\n".join(NOUNS) + "\n")
    with scripted(reply, delay=0.1) as asked:
        for words in (("visual", str(tmp_path)), ("prompts", str(tmp_path), "--per-noun", "8")):
            asking = command("datafree", *words, asked=asked)
            before = sum(asked.answered.values())
            process = warm.Process(asking)
            while sum(asked.answered.values()) < before + 20:
                assert process.poll() is None, process.communicate()
                time.sleep(0.01)
            process.send_signal(sign)
            assert process.wait() == (-9 if sign == signal.SIGKILL else 130)
            again = warm.run([asking])[0]
            assert again.returncode == 0, again.stderr
            twice = [question for question, times in asked.answered.items() if times > 1]
            assert len(twice) <= (4 if sign == signal.SIGKILL else 0) * 2
    kept = [noun for number, noun in enumerate(NOUNS) if number % 3]
    assert (tmp_path / "visual.txt").read_text().split() == kept
    captions = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert captions == [{"caption": f"{noun} in style {n}", "noun": noun} for noun in kept for n in range(1, 9)]
    assert len(asked.answered) == len(NOUNS) + len(kept)  # no question is lost


@pytest.mark.heavy
def test_an_endpoint_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    (tmp_path / "nouns.txt").write_text("\n".join(NOUNS) + "\n")
    with scripted(reply, delay=0.05) as first:
        port = urlsplit(first.url).port
        process = warm.Process(command("datafree", "visual", str(tmp_path), asked=first))
        while sum(first.answered.values()) < 20:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
    time.sleep(1)
    with scripted(reply, port=port or 0) as second:
        assert process.wait() == 0, process.communicate()
    twice = (first.answered + second.answered).most_common(5)
    assert sum(times > 1 for _, times in twice) <= 4  # those whose answers were pending
    assert set(first.answered) | set(second.answered) == {datafree.VISUAL.format(noun=noun) for noun in NOUNS}


def test_answers_are_read() -> None:
    assert [read_verdict(ANY, Answer(text)) for text in ("Yes.", "'no', it", "**NO**", "yes")] == [
        True,
        False,
        False,
        True,
    ]
    for text in ("", "Maybe yes", "Nowhere", "yesterday"):
        with pytest.raises(Unusable):
            read_verdict(ANY, Answer(text))
    assert read_verdict(ANY, Answer("Yes. A text-to-image model can clearly", cut=True))
    text = '**Here are 9:**\n---\n1. "A cat  on a mat"\n 2) **A dog**\n**3.** a cat?\n4: a cat?\nnot this\n5.\n6. half'
    assert read_prompts(ANY, Answer(text)) == ["A cat on a mat", "A dog", "a cat?", "half"]
    assert read_prompts(ANY, Answer(text, cut=True)) == ["A cat on a mat", "A dog", "a cat?"]
    with pytest.raises(Unusable):
        read_prompts(ANY, Answer("I can't do that."))


@pytest.mark.parametrize(
    ("sizes", "n", "shares"),
    [([5, 5, 5], 15, [5, 5, 5]), ([1, 9, 9], 9, [1, 4, 4]), ([3, 0, 3], 4, [2, 0, 2]), ([2, 2], 0, [0, 0])],
)
def test_shares_are_even(sizes: list[int], n: int, shares: list[int]) -> None:
    assert even_shares(sizes, n, np.random.default_rng(0)) == shares
    odd = even_shares([8] * 7, 10, np.random.default_rng(0))
    assert sorted(odd) == [1, 1, 1, 1, 2, 2, 2]


def test_a_sample_is_balanced_and_repeatable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        {"caption": f"{noun} {n}", "noun": noun} for noun, size in (("a", 2), ("b", 50), ("c", 50)) for n in range(size)
    ]
    lines.append({"caption": "b 1", "noun": "c"})  # the same prompt for two nouns counts once
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "prompts.json").write_text("{}")
    datafree.sample(str(tmp_path), n=22)
    chosen = (tmp_path / "sample-22.jsonl").read_text()
    nouns = [json.loads(line)["noun"] for line in chosen.splitlines()]
    assert {noun: nouns.count(noun) for noun in "abc"} == {"a": 2, "b": 10, "c": 10}
    datafree.sample(str(tmp_path), n=22)
    assert (tmp_path / "sample-22.jsonl").read_text() == chosen
    with pytest.raises(UserError, match="contains only 102 distinct prompts"):
        datafree.sample(str(tmp_path), n=103)
    assert os.path.exists(tmp_path / "sample-22.jsonl")
