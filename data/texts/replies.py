"""Reads the replies of chat endpoints, whatever their shape: an answer, a refusal, or trouble to try again after."""

import json
import re
from typing import Any, NamedTuple

from randcond.data.texts.reasoning import without_reasoning
from randcond.data.texts.refusals import is_refusal, is_too_long

_LARGEST = 200_000  # characters of an answer; a longer one is cut here
_CUT = {"length", "max_tokens", "model_length", "content_filter", "safety", "recitation", "abort", "aborted", "error"}
_TOO_LARGE = 413  # HTTP status of a question that is too long
_TEMPORARY = {408, 409, 425, 429}  # and all from 500 on
_TEXT_PARTS = ("text", "output_text")  # types of the parts of `content` that are the answer
_SETTINGS = {"model", "temperature", "max_tokens", "max_completion_tokens"}  # an error about these is lasting
_LASTING = {
    "model_not_found", "invalid_model", "unsupported_parameter", "unsupported_value", "unknown_parameter",
    "invalid_api_key", "insufficient_quota",
}  # fmt: skip
_QUOTA = "rate_limit_exceeded"  # Groq, with status 413: each question asks for more tokens than one minute allows


class Answer(NamedTuple):
    """An answer of the language model."""

    text: str  # without reasoning
    cut: bool = False  # True if a length limit, a filter or a fault ended the answer early
    raw: str = ""  # with reasoning


class Reply(NamedTuple):
    """A reply of the endpoint that contains an answer."""

    answer: Answer
    tokens: tuple[int, int]  # of the question and of the answer; 0 if the reply does not tell


class Unusable(Exception):
    """Raised if an answer can't be parsed. To ask the question again, remove its line from the journal."""


class Refused(Exception):
    """Raised if the endpoint or its model refuses this one question."""

    def __init__(self, message: str, tokens: tuple[int, int] = (0, 0)) -> None:
        super().__init__(message)
        self.tokens = tokens


class Rejected(Exception):
    """Raised if the endpoint would refuse every question: a wrong key, model or setting."""


class Trouble(Exception):
    """Raised if there is no answer, but another try may help."""

    def __init__(self, message: str, pause: float | None = None) -> None:
        """`pause`: seconds to wait before the next try, as the endpoint asks."""
        super().__init__(message)
        self.pause = pause


def read_reply(body: bytes) -> Reply:
    """Reads the body of a reply with HTTP status 200.

    A completion without an answer in it (`choices: []`, `message: null`, `content: null`) is an empty answer. Fields
    beside `content`, such as `reasoning_content`, are ignored.
    Raises Refused, Rejected or Trouble if the reply contains an error, and Trouble if it is not a chat completion.
    """
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError):
        reply = None
    if not isinstance(reply, dict) or not ("choices" in reply or reply.get("error")):
        shown = body[:200].decode(errors="replace")
        raise Trouble(f"its reply is not a chat completion: {shown!r}; check that url ends with /v1")
    choices = reply.get("choices")
    choice = _mapping(choices[0] if isinstance(choices, list) and choices else None)
    message = _mapping(choice.get("message"))
    tokens = _tokens(reply.get("usage"))
    raw = _text(message.get("content")).encode(errors="replace").decode()  # replaces unpaired surrogates
    if error := choice.get("error") or (not raw and reply.get("error")):
        raise read_error(None, error, f"an error in its reply: {json.dumps(error, ensure_ascii=True)[:300]}")
    if not raw and isinstance(message.get("refusal"), str) and message["refusal"]:
        raise Refused(_text(message["refusal"]).encode(errors="replace").decode(), tokens)
    text, reasoning_ends = without_reasoning(raw[:_LARGEST])
    cut = str(choice.get("finish_reason")).lower() in _CUT or len(raw) > _LARGEST or not reasoning_ends
    return Reply(Answer(text, cut, raw), tokens)


def read_error(status: int | None, error: Any, message: str, pause: float | None = None) -> Exception:
    """Returns the exception for an error that the endpoint reports: Refused, Rejected or Trouble.

    Refused: a content filter refuses this question, or it is too long. Rejected: any other error of the request, such
    as a wrong key, model or setting. Providers report these with the statuses of a refusal: Gemini a wrong key with
    400, vLLM and Mistral wrong settings with 400 and 422. Trouble: the endpoint is busy or has a fault.

    `status`: HTTP status; None if the error is in a reply with status 200, whose code then counts.
    `error`: the decoded `error` object, or the body of the reply. `message`: for the exception.
    """
    if is_refusal(error) or is_too_long(error):
        return Refused(message)
    fields = _mapping(error)
    code = str(fields.get("code") or "")
    if status is None:
        status = int(code) if re.fullmatch(r"[45]\d\d", code) else 500
    setting = re.match(r"\w*", str(fields.get("param") or ""))
    if code in _LASTING or (setting and setting[0] in _SETTINGS):
        return Rejected(message)
    if status == _TOO_LARGE and code != _QUOTA:
        return Refused(message)
    if status in _TEMPORARY or status >= 500:
        return Trouble(message, pause)
    return Rejected(message)


def _text(content: Any) -> str:
    """Returns the text of `content`: a string, or a list of parts of which those with text count."""
    return "".join(map(_text_of_part, content if isinstance(content, list) else [content]))


def _text_of_part(part: Any) -> str:
    if isinstance(part, dict):
        part = part.get("text") if part.get("type", "text") in _TEXT_PARTS else ""
    return part if isinstance(part, str) else ""


def _tokens(usage: Any) -> tuple[int, int]:
    counts = (_mapping(usage).get(name) for name in ("prompt_tokens", "completion_tokens"))
    tokens_in, tokens_out = (count if type(count) is int and 0 <= count < 2**31 else 0 for count in counts)
    return tokens_in, tokens_out


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
