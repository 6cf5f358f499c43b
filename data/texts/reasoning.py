"""Takes the reasoning off the answers of language models: a table of the forms in which models write it."""

import re
from typing import NamedTuple


class _Form(NamedTuple):
    """A form of reasoning: expressions for what opens it, what ends it, and what opens the answer behind it."""

    opening: str = ""
    ending: str = ""
    answer: str = ""


_TAG = r"(?:\w{1,20}[:_|])?(?:think(?:_fast|_faster)?|thinking|thoughts?|reasoning|reflection)"
_FORMS = {  # mostly as vLLM's reasoning parsers describe them
    # <think> of most models, <mm:think> of MiniMax, <seed:think>, <longcat_think>, <ifm|think_fast> of K2 Horizon,
    # <thought> of EXAONE, <Thought> and <Output> of Marco-o1, <answer> of Hunyuan, <response> of ERNIE
    "tags": _Form(
        rf"(?i:<{_TAG}(?:\s[^<>]{{0,100}})?(?<!/)>)",
        rf"(?i:</{_TAG}>)",
        r"(?i:<(?:final_)?(?:answer|response|output)>)",
    ),
    "Magistral": _Form(r"\[THINK\]", r"\[/THINK\]"),
    "Kimi-VL": _Form("◁think▷", "◁/think▷"),
    "Kimi K3": _Form(
        r"<\|open\|>\s*think\s*<\|sep\|>", r"<\|close\|>\s*think\s*<\|sep\|>", r"<\|open\|>\s*response\s*<\|sep\|>"
    ),
    "Cohere": _Form(r"<\|START_THINKING\|>", r"<\|END_THINKING\|>", r"<\|START_(?:RESPONSE|TEXT)\|>"),
    "OpenThinker": _Form(r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>", r"<\|begin_of_solution\|>"),
    "Apertus": _Form(r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),
    "Gemma 4": _Form(r"<\|channel>(?!\s*final)", r"<channel\|>", r"<\|channel>\s*final"),
    "Gemma 4, without its tokens": _Form(r"\Athought\n(?!\n)"),
    "gpt-oss": _Form(
        r"<\|channel\|>(?!\s*final)\s*\w*",
        "",
        r"<\|channel\|>\s*final(?:(?:[^<\n]|<\|constrain\|>){0,100}<\|message\|>)?",
    ),
    "gpt-oss, without its tokens": _Form(r"\Aanalysis(?=[A-Z\"'])", "", r"assistantfinal"),
    "Granite": _Form(r"\A\W{0,9}Here(?:['’]s| is) my thought process:", "", r"Here(?:['’]s| is) my response:"),
    "HuatuoGPT": _Form(r"\A\s*#+ Thinking\b", "", r"#+ Final Response\b"),
}
_MARK = re.compile(
    "|".join(
        f"(?P<{name}>{'|'.join(filter(None, (getattr(form, name) for form in _FORMS.values())))})"
        for name in _Form._fields
    )
)
_WRAPPINGS = re.compile(  # what closes an answer, and special tokens
    rf"<\|close\|>\s*\w{{1,20}}\s*<\|sep\|>|(?i:</(?:final_)?(?:answer|response|output)>|<{_TAG}\s?/>)"
    r"|<\|[\w ]{1,40}\|?>|<\w{1,40}\|>|<｜[^｜<>]{1,40}｜>|</?s>|<(?:end_of_turn|eos|bos|pad)>"
)


def without_reasoning(text: str) -> tuple[str, bool]:
    """Returns a text without its reasoning and without special tokens, and True unless the reasoning has no end.

    The end of reasoning without a beginning ends reasoning that began with the text. So does the beginning of the
    answer, unless an end of reasoning follows: the reasoning may name it.

    >>> without_reasoning("<think>Is it a dog? Yes.</think>\\nNo.")
    ('No.', True)
    >>> without_reasoning("It is no dog.</think>No.")
    ('No.', True)
    >>> without_reasoning("<think>Is it a dog? Yes.")
    ('', False)
    >>> without_reasoning("<|channel|>analysis<|message|>A dog?<|end|><|start|>assistant<|channel|>final<|message|>No.")
    ('No.', True)
    """
    marks = list(_MARK.finditer(text))
    last_ending = max((place for place, mark in enumerate(marks) if mark["ending"]), default=-1)
    kept: list[str] = []
    position, inside, answering = 0, False, False
    for place, mark in enumerate(marks):
        if mark["answer"] and place < last_ending:
            continue
        if not inside:
            kept.append(text[position : mark.start()])
        position = mark.end()
        if not (inside or mark["opening"] or answering):  # without a beginning: all before is reasoning
            kept.clear()
        answering |= bool(mark["answer"])
        inside = bool(mark["opening"])
    if not inside:
        kept.append(text[position:])
    return _WRAPPINGS.sub("", "".join(kept)).lstrip(), not inside
