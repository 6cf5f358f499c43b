"""Odd replies of endpoints: the outcome that each must give, and how often the question is asked."""

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from randcond.data.texts.endpoint import Endpoint, read_endpoint
from randcond.data.texts.journal import Journal
from randcond.data.texts.llm import CONTROL, Question, ask
from randcond.data.texts.replies import Answer, Unusable
from randcond.launch.errors import UserError
from randcond.launch.urls import hide_secrets
from tests.support.endpoint import Said, completion, scripted


def once(first: Said, then: str = "yes") -> Callable[[], str | Said]:
    replies = iter([first])
    return lambda: next(replies, then)


def part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def always(reply: str | Said) -> Callable[[], str | Said]:
    return lambda: reply


ODD = "odd"  # the question with the odd reply; the other questions are answered "yes"
ERROR = {"error": {"message": "overloaded", "code": 502}}
FILTER = {"error": {"message": "content policy", "code": "content_filter", "param": "prompt"}}
REPLIES: dict[str, tuple[Callable[[], str | Said], str, int]] = {  # name -> reply, outcome, how often it is asked
    "content in parts": (always(Said(completion([part("ye"), part("s")]))), "yes", 1),
    "thinking in parts": (always(Said(completion([{"type": "thinking", "thinking": "no"}, part("yes")]))), "yes", 1),
    "content in parts of another kind": (always(Said(completion(["yes", 3, None, {"type": "image"}]))), "yes", 1),
    "reasoning in a field": (always(Said(completion("yes", reasoning_content="no", reasoning="no"))), "yes", 1),
    "reasoning in a field, no content": (always(Said(completion(None, reasoning_content="yes"))), "unusable", 3),
    "no content": (always(Said(completion(None))), "unusable", 3),
    "content is a number": (always(Said(completion(3))), "unusable", 3),
    "no content, once": (once(Said(completion(None))), "yes", 2),
    "message: null": (always(Said({"choices": [{"message": None}]})), "unusable", 3),
    "choices: []": (always(Said({"choices": []})), "unusable", 3),
    "choices: null": (always(Said({"choices": None})), "unusable", 3),
    "choices: [null]": (always(Said({"choices": [None]})), "unusable", 3),
    "choices of text": (always(Said({"choices": "yes"})), "unusable", 3),
    "no usage": (always(Said({"choices": completion("yes")["choices"]})), "yes", 1),
    "usage: null": (always(Said(completion("yes", usage=None))), "yes", 1),
    "usage with null": (always(Said(completion("yes", usage={"prompt_tokens": None}))), "yes", 1),
    "usage with text": (always(Said(completion("yes", usage={"completion_tokens": "3"}))), "yes", 1),
    "usage of text": (always(Said(completion("yes", usage="7"))), "yes", 1),
    "unpaired surrogates": (always(Said('{"choices": [{"message": {"content": "yes\\ud800"}}]}')), "yes?", 1),
    "only the least": (always(Said({"choices": [{"message": {"content": "yes"}}]})), "yes", 1),
    "refusal": (always(Said(completion(None, refusal="I'm sorry."))), "refused", 1),
    "refusal beside content": (always(Said(completion("yes", refusal=""))), "yes", 1),
    "400": (always(Said({"error": {"message": "no", "code": "content_policy_violation"}}, 400)), "refused", 1),
    "422": (always(Said({"detail": [{"msg": "no", "type": "content_policy_violation"}]}, 422)), "refused", 1),
    "400 without JSON": (always(Said("Content Exists Risk", 400)), "refused", 1),
    "400, content filter": (always(Said(FILTER, 400)), "refused", 1),
    "403, flagged": (always(Said({"error": {"code": 403, "metadata": {"flagged_input": "x"}}}, 403)), "refused", 1),
    "413": (always(Said("too large", 413)), "refused", 1),
    "an error in place of choices": (once(Said(ERROR)), "yes", 2),
    "an error beside choices": (once(Said({**ERROR, "choices": []})), "yes", 2),
    "an error inside a choice": (once(Said({"choices": [{**ERROR, "message": {"content": "ye"}}]})), "yes", 2),
    "a refusal inside a choice": (always(Said({"choices": [{"error": FILTER["error"]}]})), "refused", 1),
    "an error of text": (once(Said({"error": "overloaded"})), "yes", 2),
    "a web page": (once(Said("<html>not here</html>")), "yes", 2),
    "an empty body": (once(Said("")), "yes", 2),
    "half of a JSON": (once(Said('{"choices": [')), "yes", 2),
    "a list": (once(Said([])), "yes", 2),
    "deep JSON": (once(Said("[" * 100_000)), "yes", 2),
    "invalid UTF-8": (once(Said(b'{"choices": [{"message": {"content": "\xff"}}]}')), "yes", 2),
    "a cut connection": (once(Said(completion("yes"), cut=True)), "yes", 2),
    "429": (once(Said(ERROR, 429, {"Retry-After": "0.2"})), "yes", 2),
    "429 with a past date": (once(Said(ERROR, 429, {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"})), "yes", 2),
    "500": (once(Said(ERROR, 500)), "yes", 2),
    "500 without JSON": (once(Said("<html>\n</html>", 500, {"Retry-After": "soon"})), "yes", 2),
    "500 for this question only": (always(Said(ERROR, 500)), "unusable", 3),
    "a web page for this question only": (always(Said("<html>not here</html>")), "unusable", 3),
}  # fmt: skip


@pytest.mark.parametrize("name", REPLIES)
def test_replies(name: str, tmp_path: Path) -> None:
    """The question gets its outcome, the other questions are answered, and nothing is asked without need."""
    reply, outcome, times = REPLIES[name]
    questions = [Question("s", text) for text in (ODD, "a", "b", "c")]
    with scripted(lambda text: reply() if text == ODD else "yes", delay=0) as asked:
        endpoint = Endpoint(model="m", url=asked.url, retries=1, concurrency=2)
        kept = ask(endpoint, questions, tmp_path / "a.jsonl", take_yes, 5, "asking")
        again = ask(endpoint, questions, tmp_path / "a.jsonl", take_yes, 5, "asking")
    assert kept.answers == again.answers and outcomes(kept, questions) == [outcome, "yes", "yes", "yes"]
    asked.requests.pop(CONTROL[1], None)
    assert dict(asked.requests) == {ODD: times, "a": 1, "b": 1, "c": 1}


def take_yes(question: Question, answer: Answer) -> str:
    if not answer.text.startswith("yes"):
        raise Unusable
    return answer.text


def outcomes(journal: Journal, questions: list[Question]) -> list[str]:
    kinds = {
        **dict.fromkeys(journal.unusable, "unusable"),
        **dict.fromkeys(journal.refused, "refused"),
        **journal.answers,
    }
    return [kinds[question.id] for question in questions]


CONCERN_ALL = {
    "a wrong key": Said({"error": {"message": "Incorrect API key provided: sk-planted-1"}}, 401),
    "no permission": Said(ERROR, 403),
    "no such model": Said({"error": {"message": "no model m", "code": "model_not_found"}}, 404),
    "no such model, as 400": Said({"error": {"message": "no model m", "param": "model"}}, 400),
    "no such model, inside 200": Said({"error": {"message": "no model m", "code": 404}}),
    "nothing paid": Said(ERROR, 402),
    "quota used up": Said({"error": {"message": "quota", "code": "insufficient_quota"}}, 429),
    "a setting that the model does not have": Said({"error": {"message": "Unsupported", "param": "temperature"}}, 400),
    "not allowed": Said("", 405),
}


@pytest.mark.parametrize("name", CONCERN_ALL)
def test_errors_that_concern_every_question_stop_at_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-planted-1")
    questions = [Question("s", text) for text in "abcdef"]
    with scripted(lambda text: CONCERN_ALL[name]) as asked:
        url = asked.url.replace("http://", "http://someone:planted-2@")
        endpoint = Endpoint(model="m", url=url, key="MY_KEY", concurrency=1)
        with pytest.raises(UserError, match=r"refuses the request: .*check model, url, \$MY_KEY") as error:
            ask(endpoint, questions, tmp_path / "a.jsonl", take_yes, 5, "asking")
    assert "planted" not in str(error.value) and sum(asked.requests.values()) == 1
    kept = Journal(tmp_path / "a.jsonl", "m", read_only=True)
    assert not kept.refused and "planted" not in kept.path.read_text()


def test_no_secret_of_an_endpoint_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "planted-1")
    endpoint = Endpoint(model="m", url="https://planted-2:planted%2D3@host:1/v1?sig=planted-4&x=1", key="MY_KEY")
    assert endpoint.name() == "the endpoint https://host:1/v1?..."
    said = f"401 for planted-1 at {endpoint.url}: user planted-2, password planted-3, sig planted-4"
    assert endpoint.api_key() == "planted-1"
    assert "planted" not in hide_secrets(said)


def test_an_answer_that_comes_byte_by_byte_ends_at_the_timeout(tmp_path: Path) -> None:
    reply = once(Said(completion("yes"), every=0.05))  # 10 seconds
    with scripted(lambda text: reply(), delay=0) as asked:
        endpoint = Endpoint(model="m", url=asked.url, timeout=0.5, retries=1)
        kept = ask(endpoint, [Question("s", ODD)], tmp_path / "a.jsonl", take_yes, 5, "asking")
    assert list(kept.answers.values()) == ["yes"]
    assert asked.requests[ODD] == 2  # without the limit the first answer would arrive after 10 seconds


def test_a_pause_that_is_too_long_ends_the_run(tmp_path: Path) -> None:
    with scripted(lambda text: Said(ERROR, 429, {"Retry-After": "3600"})) as asked:
        endpoint = Endpoint(model="m", url=asked.url, concurrency=1)
        with pytest.raises(ConnectionError, match="asks to wait 3,600 s; all answers so far are kept"):
            ask(endpoint, [Question("s", ODD)], tmp_path / "a.jsonl", take_yes, 5, "asking")
    assert asked.requests[ODD] == 1


@pytest.mark.parametrize(("share", "asks"), [(0.5, 51), (0.0, 1), (1.0, 120)])
def test_a_run_stops_if_most_of_the_first_hundred_cannot_be_used(tmp_path: Path, share: float, asks: int) -> None:
    questions = [Question("s", f"question {number}") for number in range(120)]
    with scripted(lambda text: Said(completion(None, refusal="I'm sorry.")), delay=0) as asked:
        endpoint = Endpoint(model="m", url=asked.url, concurrency=1, max_unusable=share)
        if share < 1:
            with pytest.raises(
                UserError, match=rf"{asks} of the first {asks} questions have no usable answer"
            ) as error:
                ask(endpoint, questions, tmp_path / "a.jsonl", take_yes, 5, "asking")
            assert str(error.value).count('refused: "I\'m sorry."') == min(3, asks)
            assert "max_unusable=1" in str(error.value)
        else:
            ask(endpoint, questions, tmp_path / "a.jsonl", take_yes, 5, "asking")
    assert sum(asked.requests.values()) == asks
    assert len(Journal(tmp_path / "a.jsonl", "m").refused) == asks


def test_a_run_goes_on_if_less_than_half_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = [Question("s", f"question {number}") for number in range(120)]
    with scripted(lambda text: "yes" if int(text[9:]) % 2 else Said(FILTER, 400), delay=0) as asked:
        endpoint = Endpoint(model="m", url=asked.url, concurrency=1)
        ask(endpoint, questions, tmp_path / "a.jsonl", take_yes, 5, "asking")
    said = capsys.readouterr().out
    assert "120 questions: 60 answered, 0 unusable, 60 refused, 0 already known" in said
    assert said.count("is refused: ") == 3


SETTINGS = {
    "the key itself": ("key=sk-planted-1", "key: expected the name of an environment variable"),
    "no scheme": ("url=localhost:8000/v1", "url: expected http"),
    "a port that is no number": ("url=http://localhost:port/v1", "url: expected http"),
    "no host": ("url=http:///v1", "url: expected http"),
    "no time": ("timeout=0", "timeout: is 0, expected more than 0"),
    "a share below 0": ("max_unusable=-1", "max_unusable: is -1"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_cannot_be(name: str) -> None:
    word, message = SETTINGS[name]
    with pytest.raises(UserError, match=message) as error:
        read_endpoint(["model=m", word])
    assert "planted" not in str(error.value)


def test_the_command_in_the_message_removes_the_lines_of_a_journal_in_any_folder(tmp_path: Path) -> None:
    """The command is run, as a user would."""
    journal = tmp_path / "my data; it's $HOME" / "a.jsonl"
    questions = [Question("s", text) for text in "abc"]
    with scripted(lambda text: "yes" if text == "a" else Said(FILTER, 400), delay=0) as asked:
        endpoint = Endpoint(model="m", url=asked.url, concurrency=1, max_unusable=0.01)
        with pytest.raises(UserError) as error:
            ask(endpoint, questions, journal, take_yes, 5, "asking")
    command = str(error.value).split("remove their lines: ")[1]
    assert shlex.split(command)[-1] == str(journal)
    subprocess.run(command, shell=True, check=True)
    kept = Journal(journal, "m", read_only=True)
    assert len(kept.answers) == 1 and not kept.refused


ANSWERED = '{"id": "q1", "answer": "yes", "tokens": [7, 3]}\n'
FIRST_LINES = {
    "the line is missing": (ANSWERED, "before", 1),
    "the line is damaged": ('{"mod\n' + ANSWERED, "in place of", 1),
    "the line is empty": ("\n" + ANSWERED, "in place of", 1),
    "another object": ("{}\n", "in place of", 0),
    "a list": ("[]\n" + ANSWERED, "in place of", 1),
}


@pytest.mark.parametrize("name", FIRST_LINES)
def test_the_advice_on_the_first_line_of_a_journal_keeps_the_answers(name: str, tmp_path: Path) -> None:
    text, place, answers = FIRST_LINES[name]
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=rf'line 1: expected the name .* write {{"model": "m"}} {place} this line'):
        Journal(path, "m")
    lines = text.splitlines(keepends=True)
    path.write_text('{"model": "m"}\n' + "".join(lines if place == "before" else lines[1:]))
    assert len(Journal(path, "m").answers) == answers
