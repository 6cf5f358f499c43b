"""Tells by the error of a chat endpoint whether it refuses this one question: a table of what content filters say."""

import json
import re
from collections import deque
from collections.abc import Iterator
from typing import Any

# What an error names if a content filter refused the question, without signs and in lower case.
_CODES = {
    "contentfilter": "Azure OpenAI: learn.microsoft.com, Azure OpenAI content filtering; Moonshot: kimi-cli issue 1002",
    "responsibleaipolicyviolation": "Azure OpenAI, code of `innererror`: learn.microsoft.com, content filtering",
    "contentpolicyviolation": "OpenAI: one-api issue 737; OpenRouter: openrouter.ai/docs, Errors and Debugging",
    "moderationblocked": "OpenAI: PyRIT, openai_error_handling.py",
    "refusal": "OpenRouter, status 403: openrouter.ai/docs, Errors and Debugging",
    "datainspectionfailed": "DashScope, also `InternalError.Algo.DataInspectionFailed`: owl issue 432, Qwen issue 938",
    "sensitivecontentdetected": "Volcengine Ark, also `SensitiveContentDetected.Violence`: its error codes",
    "inputtextsensitivecontentdetected": "Volcengine Ark: its error codes",
    "outputtextsensitivecontentdetected": "Volcengine Ark: its error codes",
    "inputtextriskdetection": "Volcengine Ark: its error codes",
    "outputtextriskdetection": "Volcengine Ark: its error codes",
    "1301": "Zhipu: langchain4j issue 1079",
    "safety": "Gemini, the reason for a block: cloud.google.com, Process blocked responses",
    "prohibitedcontent": "Gemini: vercel/ai issue 4235",
}

# What the message says, where the code is that of any wrong request.
_MESSAGES = {
    r"flagged as potentially violating our usage policy": "OpenAI, code invalid_prompt: pal-mcp-server issue 178",
    r"limited access to this content for safety reasons": "OpenAI, code invalid_prompt: PyRIT pull request 1463",
    r"rejected as a result of (?:our|the) safety system": "OpenAI: one-api issue 737",
    r"triggering .{0,40}content management policy": "Azure OpenAI behind a gateway: openai-python issue 331",
    r"ContentPolicyViolationError": "LiteLLM's proxy: LiteLLM pull request 16231",
    r"blocked by content filtering policy": "Anthropic: claude-code issue 6195",
    r"Content Exists Risk": "DeepSeek: DeepSeek-V2 issue 30",
    r"Content violates usage guidelines": "xAI, status 403: inspect_ai pull request 2267",
    r"rejected because it was considered high risk": "Moonshot: kimi-code issue 242",
    r"data may contain inappropriate content": "DashScope: Qwen issue 938",
    r"(?:in|out)put new_sensitive": "MiniMax, status 422: its error codes 1026 and 1027",
}
_MESSAGE = re.compile("|".join(_MESSAGES), re.IGNORECASE)

_TOO_LONG_CODES = {"contextlengthexceeded", "stringabovemaxlength"}  # OpenAI, Azure OpenAI, OpenRouter
_TOO_LONG = re.compile(  # OpenAI and vLLM; Anthropic; Gemini
    r"maximum context length|prompt is too long|input token count .{0,40}exceeds the maximum", re.IGNORECASE
)

_CODE_FIELDS = {"code", "type", "status", "reason", "error_type", "error_code", "provider_code"}
_MESSAGE_FIELDS = {"message", "msg", "detail", "error", "error_message"}
_FLAGGED = "flagged_input"  # OpenRouter, status 403: metadata of a question that its moderation flagged
_PAGE = re.compile(r"\s*<(?:!doctype|html|head|body|\?xml)\b", re.IGNORECASE)
_PARTS = 1_000  # values that are looked at in one error


def is_refusal(error: Any) -> bool:
    """Returns True if an error says that a content filter refuses this question.

    `error`: the decoded body of a reply, or its `error` object, or the text of a reply that is not JSON. Only what the
    filters are known to say counts: an error that looks like a wrong setting is no refusal.

    >>> is_refusal({"message": "The response was filtered", "code": "content_filter"})
    True
    >>> is_refusal({"message": "API key not valid.", "code": 400, "status": "INVALID_ARGUMENT"})
    False
    """
    for name, value in _fields(error):
        if name == _FLAGGED:
            return True
        if name in _CODE_FIELDS and any(_folded(part) in _CODES for part in str(value).split(".")):
            return True
        if name in _MESSAGE_FIELDS and _MESSAGE.search(str(value)):
            return True
    return False


def is_too_long(error: Any) -> bool:
    """Returns True if an error says that this question has more tokens than the model takes. `error`: as above.

    >>> is_too_long({"message": "This model's maximum context length is 8192 tokens.", "code": 400})
    True
    """
    return any(
        (name in _CODE_FIELDS and _folded(str(value)) in _TOO_LONG_CODES)
        or (name in _MESSAGE_FIELDS and _TOO_LONG.search(str(value)))
        for name, value in _fields(error)
    )


def _fields(error: Any) -> Iterator[tuple[str, str | int | None]]:
    """Yields the fields of an error with their names, also of objects in it and of those that stand in it as JSON text.

    Gateways nest the error of the provider, some as text. A web page is no error of the endpoint: a proxy may have sent
    it.
    """
    waiting = deque([("message", error)])
    for _ in range(_PARTS):
        if not waiting:
            return
        name, value = waiting.popleft()
        value = _decoded(value) if isinstance(value, str) else value
        if isinstance(value, dict):
            waiting.extend(value.items())
        elif isinstance(value, list):
            waiting.extend((name, each) for each in value)
        elif not (isinstance(value, str) and _PAGE.match(value)):
            yield name, value


def _decoded(text: str) -> Any:
    """Returns the value of a text that is a JSON object or list, else the text."""
    if not text.lstrip().startswith(("{", "[")):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _folded(code: str) -> str:
    return re.sub(r"[\W_]+", "", code.lower())
