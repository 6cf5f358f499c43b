"""Errors of providers, as they send them: which refuse one question, and which concern every question."""

from pathlib import Path
from typing import Any

import pytest

from randcond.data.texts.endpoint import Endpoint
from randcond.data.texts.journal import Journal
from randcond.data.texts.llm import Question, ask
from randcond.launch.errors import UserError
from tests.odd.test_replies import ODD, outcomes, take_yes
from tests.support.endpoint import Said, completion, scripted

WRONG, INVALID = "invalid_request_error", "INVALID_ARGUMENT"
AZURE = "The response was filtered due to the prompt triggering Azure OpenAI's content management policy."


def error(message: str, **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, **fields}}


REFUSALS = {  # name -> status, body
    "Azure OpenAI": (400, error(AZURE, type=None, param="prompt", code="content_filter", status=400,
                                innererror={"code": "ResponsibleAIPolicyViolation", "content_filter_result": {}})),
    "Azure OpenAI, only the inner code": (400, error("no", innererror={"code": "ResponsibleAIPolicyViolation"})),
    "Azure OpenAI behind LiteLLM": (400, error(f"litellm.ContentPolicyViolationError: {AZURE}", type=None, code="400")),
    "Azure OpenAI behind OpenRouter": (400, error("Provider returned error", code=400, metadata={
        "provider_name": "Azure", "raw": '{"error": {"message": "filtered", "code": "content_filter"}}'})),
    "OpenAI": (400, error("Your request was rejected as a result of our safety system.", type=WRONG, code=None)),
    "OpenAI, with a code": (400, error("no", type=WRONG, code="content_policy_violation")),
    "OpenAI, prompt flagged": (400, error("Invalid prompt: your prompt was flagged as potentially violating our usage "
                                          "policy.", type=WRONG, param=None, code="invalid_prompt")),
    "OpenAI, limited access": (400, error("Invalid prompt: we've limited access to this content for safety reasons.",
                                          type=WRONG, code="invalid_prompt")),
    "OpenRouter, moderation": (403, error("x/y requires moderation", code=403, metadata={
        "reasons": ["violence"], "flagged_input": "a...", "provider_name": "x", "model_slug": "x/y"})),
    "OpenRouter, refusal": (403, error("no", code=403, metadata={"error_type": "refusal"})),
    "Anthropic": (400, {"type": "error", **error("Output blocked by content filtering policy", type=WRONG)}),
    "DashScope": (400, {**error("Input data may contain inappropriate content.", code="data_inspection_failed",
                                param=None, type="data_inspection_failed"), "request_id": "1"}),
    "DashScope, other spelling": (400, {"code": "InternalError.Algo.DataInspectionFailed", "message": "no"}),
    "DashScope, in the message": (400, error("<400> InternalError.Algo.DataInspectionFailed: Input text data may "
                                             "contain inappropriate content.")),
    "DeepSeek": (400, error("Content Exists Risk", type=WRONG, param=None, code=WRONG)),
    "DeepSeek, older": (400, {"detail": "Content Exists Risk"}),
    "Moonshot": (400, error("The request was rejected because it was considered high risk", type="content_filter")),
    "Zhipu": (400, error("系统检测到输入或生成内容可能包含不安全或敏感内容", code="1301")),
    "MiniMax": (422, {"type": "error", **error("input new_sensitive (1026)", type="unprocessable_entity_error")}),
    "Volcengine Ark": (400, error("The request failed", code="InputTextSensitiveContentDetected", type="BadRequest")),
    "Volcengine Ark, a kind": (400, error("The request failed", code="SensitiveContentDetected.Violence")),
    "xAI": (403, {"code": "The caller does not have permission to execute the specified operation",
                  "error": "Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_BIO"}),
    "Gemini": (400, [error("blocked", code=400, status=INVALID, details=[{"reason": "PROHIBITED_CONTENT"}])]),
    "vLLM, context": (400, error("This model's maximum context length is 8192 tokens.", type="BadRequestError")),
    "OpenAI, context": (400, error("too long", type=WRONG, param="messages", code="context_length_exceeded")),
    "Anthropic, context": (400, {"type": "error", **error("prompt is too long: 9 tokens > 8 maximum", type=WRONG)}),
    "inside a reply": (200, error("no", code=400, metadata={"raw": '{"error": {"code": "content_filter"}}'})),
    "a filter with status 500": (500, error("no", code="content_filter")),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refused_question_is_recorded_and_the_run_goes_on(name: str, tmp_path: Path) -> None:
    status, body = REFUSALS[name]
    questions = [Question("s", text) for text in ("a", ODD, "b")]
    with scripted(lambda text: Said(body, status) if text == ODD else "yes", delay=0) as asked:
        endpoint = Endpoint(model="m", url=asked.url, concurrency=1)
        kept = ask(endpoint, questions, tmp_path / "a.jsonl", take_yes, 5, "asking")
    assert outcomes(kept, questions) == ["yes", "refused", "yes"]
    assert dict(asked.requests) == {"a": 1, ODD: 1, "b": 1}


CONCERN_ALL = {  # name -> status, body, what the message must show
    "Gemini, wrong key": (400, [error("API key not valid. Please pass a valid API key.", code=400, status=INVALID,
                                      details=[{"reason": "API_KEY_INVALID"}])], "API key not valid"),
    "Gemini, unknown field": (400, [error('Unknown name "seed"', code=400, status=INVALID)], "Unknown name"),
    "Gemini, wrong key behind a gateway": (400, error('{"error": {"message": "API key not valid.", "code": 400}}'),
                                           "API key not valid"),
    "vLLM, too many tokens": (400, {"object": "error", "message": "max_tokens must be at least 1, got -186.",
                                    "type": "BadRequestError", "param": None, "code": 400}, "max_tokens must be"),
    "vLLM, no such model": (404, {"object": "error", "message": "The model `m` does not exist.",
                                  "type": "NotFoundError", "code": 404}, "does not exist"),
    "vLLM, wrong chat template": (400, error("As of transformers v4.44, default chat template is no longer allowed"),
                                  "chat template"),
    "Mistral, no such model": (400, {"object": "error", "message": "Invalid model: m", "type": "invalid_model",
                                     "param": None, "code": "1500"}, "Invalid model"),
    "Mistral, unknown setting": (422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"],
                                                   "msg": "Extra inputs are not permitted", "input": 1}]},
                                 "Extra inputs"),
    "OpenAI, unsupported setting": (400, error("Unsupported parameter: 'max_tokens'", type=WRONG, param="max_tokens",
                                               code="unsupported_parameter"), "Unsupported parameter"),
    "OpenAI, malformed": (400, error("Invalid prompt", type=WRONG, code="invalid_prompt"), "Invalid prompt"),
    "Anthropic, spent": (400, {"type": "error", **error("Your credit balance is too low", type=WRONG)}, "credit"),
    "DashScope, overdue": (400, error("Access denied", code="Arrearage", type="Arrearage"), "Access denied"),
    "OpenRouter, no such model": (400, error("m is not a valid model ID", code=400), "not a valid model"),
    "OpenRouter, inside a reply": (200, error("Provider returned error", code=400), "Provider returned error"),
    "xAI, no access": (403, {"code": "permission-denied", "error": "Access to the chat endpoint is denied"}, "denied"),
    "Groq, too many tokens a minute": (413, error("Request too large", type="tokens", code="rate_limit_exceeded"),
                                       "Request too large"),
    "nothing said": (400, "", "400"),
    "a web page": (400, "<html>Bad Request</html>", "Bad Request"),
    "a company's filter": (403, "<html>This page is blocked by content filtering policy</html>", "403"),
    "not found": (404, error("no route"), "no route"),
    "for legal reasons": (451, "not in your country", "not in your country"),
    "a key in the message": (400, error("wrong key sk-planted-1 at http://me:planted-2@host/v1"), "wrong key"),
    "refused words in the question": (422, {"detail": [{"type": "missing", "loc": ["body"], "msg": "Field required",
                                                        "input": "Content Exists Risk"}]}, "Field required"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONCERN_ALL)
def test_an_error_of_the_request_ends_the_run_and_no_question_is_written_off(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, body, shown = CONCERN_ALL[name]
    monkeypatch.setenv("MY_KEY", "sk-planted-1")
    replies = iter(["yes", "yes"])
    questions = [Question("s", f"question {number}") for number in range(6)]
    with scripted(lambda text: next(replies, None) or Said(body, status), delay=0) as asked:
        endpoint = Endpoint(model="m", url=asked.url, key="MY_KEY", concurrency=1)
        with pytest.raises(UserError, match=r"refuses the request: .*check model, url, \$MY_KEY") as error:
            ask(endpoint, questions, tmp_path / "a.jsonl", take_yes, 5, "asking")
    assert sum(asked.requests.values()) == 3 and shown in str(error.value) and "question 2" in str(error.value)
    assert "planted" not in str(error.value)
    kept = Journal(tmp_path / "a.jsonl", "m", read_only=True)
    assert len(kept.answers) == 2 and not kept.refused and not kept.unusable


def test_after_the_mistake_is_mended_every_question_gets_its_answer(tmp_path: Path) -> None:
    questions = [Question("s", f"question {number}") for number in range(40)]
    wrong = Said(CONCERN_ALL["Gemini, wrong key"][1], 400)
    with scripted(lambda text: wrong, delay=0) as asked, pytest.raises(UserError, match="API key not valid"):
        ask(Endpoint(model="m", url=asked.url), questions, tmp_path / "a.jsonl", take_yes, 5, "asking")
    with scripted(lambda text: Said(completion("yes")), delay=0) as asked:
        kept = ask(Endpoint(model="m", url=asked.url), questions, tmp_path / "a.jsonl", take_yes, 5, "asking")
    assert outcomes(kept, questions) == ["yes"] * 40 and sum(asked.requests.values()) == 40
