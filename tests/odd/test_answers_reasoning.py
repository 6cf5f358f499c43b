"""Answers with reasoning in every form that models write: what stays of them, and that no thought becomes an answer."""

import json

import pytest

from randcond.data.texts.answers import read_prompts, read_verdict
from randcond.data.texts.replies import read_reply
from tests.odd.test_answers import CAT, VISUAL, read
from tests.support.endpoint import completion

# Pairs of opening and end, and what stands around the answer. Each model thinks "yes", and answers "No".
FORMS = {
    "DeepSeek, Qwen, GLM": ("<think>", "</think>", "", ""),
    "MiniMax M3": ("<mm:think>", "</mm:think>", "", ""),
    "Seed": ("<seed:think>", "</seed:think>", "", ""),
    "LongCat": ("<longcat_think>", "</longcat_think>", "", ""),
    "K2 Horizon": ("<ifm|think_fast>", "</ifm|think_fast>", "", ""),
    "EXAONE": ("<thought>", "</thought>", "", ""),
    "Marco-o1": ("<Thought>", "</Thought>", "<Output>", "</Output>"),
    "Hunyuan": ("<think>\n", "\n</think>\n", "<answer>\n", "\n</answer>"),
    "ERNIE": ("<think>", "</think>\n\n", "<response>\n", "\n</response>\n"),
    "Magistral": ("[THINK]", "[/THINK]", "", "</s>"),
    "Kimi-VL": ("◁think▷", "◁/think▷", "", ""),
    "Kimi K3": ("<|open|>think<|sep|>", "<|close|>think<|sep|>", "<|open|>response<|sep|>",
                "<|close|>response<|sep|><|close|>message<|sep|>"),
    "Kimi K3 with blanks": ("<|open|> think <|sep|>", "<|close|> think <|sep|>", "<|open|> response <|sep|>",
                            "<|close|> response <|sep|>"),
    "Cohere": ("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    "OpenThinker": ("<|begin_of_thought|>\n\n", "\n\n<|end_of_thought|>\n\n", "<|begin_of_solution|>\n\n",
                    "\n\n<|end_of_solution|>"),
    "Apertus": ("<|inner_prefix|>", "<|inner_suffix|>", "", "<|assistant_end|>"),
    "Gemma 4": ("<|channel>thought\n", "<channel|>", "", "<turn|>"),
    "gpt-oss": ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant", "<|channel|>final<|message|>",
                "<|return|>"),
    "gpt-oss, JSON": ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant",
                      "<|channel|>final <|constrain|>json<|message|>", "<|return|>"),
    "gpt-oss, without its tokens": ("analysis", "", "assistantfinal", ""),
    "Granite": ("Here is my thought process:\n", "\n\n", "Here is my response:\n", ""),
    "Granite, short": ("Here's my thought process: ", " ", "Here's my response: ", ""),
    "HuatuoGPT": ("## Thinking\n\n", "\n\n", "## Final Response\n\n", ""),
}  # fmt: skip
THOUGHT = "Yes, a cat.\n1. a draft\nAnswer: yes\n"
LIST = "1. A cat\n2. Two cats"


def verdict(text: str) -> bool | None:
    found: bool | None = read(VISUAL, completion(text), read_verdict)
    return found


@pytest.mark.parametrize("name", FORMS)
def test_reasoning_comes_off(name: str) -> None:
    opening, end, before, after = FORMS[name]
    assert verdict(f"{opening}{THOUGHT}{end}{before}No.{after}") is False
    assert read(CAT, completion(f"{opening}{THOUGHT}{end}{before}{LIST}{after}"), read_prompts) == ["A cat", "Two cats"]


@pytest.mark.parametrize("name", FORMS)
def test_reasoning_without_an_end_is_no_answer(name: str) -> None:
    reply = completion(f"{FORMS[name][0]}{THOUGHT}", "stop")
    assert read_reply(json.dumps(reply).encode()).answer[:2] == ("", True)
    assert verdict(f"{FORMS[name][0]}{THOUGHT}") is None and read(CAT, reply, read_prompts) is None


@pytest.mark.parametrize("name", [name for name in FORMS if name != "gpt-oss, without its tokens"])
def test_reasoning_without_a_beginning_comes_off(name: str) -> None:
    """Many chat templates write the opening into the question."""
    _, end, before, after = FORMS[name]
    assert verdict(f"{THOUGHT}{end}{before}No.{after}") is False


@pytest.mark.parametrize("name", [name for name in FORMS if FORMS[name][2]])
def test_the_beginning_of_the_answer_ends_reasoning_without_an_end(name: str) -> None:
    opening, _, before, after = FORMS[name]
    assert verdict(f"{opening}{THOUGHT}{before}No.{after}") is False


ODD = {
    "the reasoning names the tag of the answer": ("<think><answer>yes</answer>?</think><answer>No</answer>", False),
    "two answers": ("<answer>Yes</answer>\n<answer>No</answer>", None),
    "reasoning behind the answer": ("No.\n<|START_THINKING|>yes<|END_THINKING|>", False),
    "reasoning without an end behind the answer": ("No, it is abstract. <|begin_of_thought|>yes", False),
    "Gemma 4 without its tokens": ("thought\nYes, a cat can be drawn.\nAnswer: yes", None),
    "the noun thought": ("'thought'\n\nNo, it is abstract.", False),
    "an empty tag": ("<think/>No.", False),
    "a channel without a message": ("<|channel|>final No.", False),
    "a commentary": ("<|channel|>commentary<|message|>yes<|end|><|channel|>final<|message|>No.", False),
    "a word that begins like a channel": ("analysis: yes", None),
    "the end twice": ("yes</think>yes</think>No", False),
    "ends of two forms": ("<think>yes<|END_THINKING|>No", False),
    "an answer about thinking": ("Yes, a model can show someone thinking.", True),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_reasoning(name: str) -> None:
    text, expected = ODD[name]
    assert verdict(text) is expected
