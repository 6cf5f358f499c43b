"""Odd answers of language models to questions about nouns: the verdict or captions that each must give."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from randcond.data.texts import datafree_command as datafree
from randcond.data.texts.answers import read_prompts, read_verdict
from randcond.data.texts.llm import Question
from randcond.data.texts.replies import Answer, Unusable, read_reply
from tests.support.endpoint import completion
from tests.support.patience import HANG

CAT = Question(datafree.SYSTEM, datafree.PROMPTS.format(noun="cat", count=3))
VISUAL = Question(datafree.SYSTEM, datafree.VISUAL.format(noun="cat"))


def read(question: Question, reply: dict[str, Any], reader: Callable[[Question, Answer], Any]) -> Any:
    """Returns what is read of a reply, or None if it is unusable."""
    try:
        return reader(question, read_reply(json.dumps(reply).encode()).answer)
    except Unusable:
        return None


VERDICTS = {
    "reasoning block": ("<think>No, no, no.</think>\n\nYes.", True),
    "reasoning block, thinking": ("<thinking>yes?</thinking>No, it is abstract.", False),
    "reasoning block, reasoning": ("<reasoning>\nyes\n</reasoning>\nno", False),
    "reasoning block with an attribute": ('<think time="3">yes</think>No.', False),
    "reasoning block, upper case": ("<THINK>yes</THINK> No", False),
    "reasoning inside reasoning": ("<think>a<think>yes</think>yes</think>No.", False),
    "reasoning that names the tag": ("<think>I write <think> and then yes</think>No.", False),
    "two reasoning blocks": ("<think>yes</think>No.<think>yes, really</think>", False),
    "empty reasoning block": ("<think>\n\n</think>\n\nNo.", False),
    "reasoning without an end": ("<think>Yes, a cat is visual", None),
    "reasoning without a beginning": ("Yes, I would say.\n</think>\n\nNo.", False),
    "answer, then reasoning without an end": ("No. <think>Or is it yes", False),
    "reasoning of Kimi": ("◁think▷yes◁/think▷No.", False),
    "reasoning of Magistral": ("[THINK]yes[/THINK]No.", False),
    "reasoning of Seed": ("<seed:think>yes</seed:think>No.", False),
    "channels of gpt-oss": ("<|channel|>analysis<|message|>Yes?<|end|><|start|>assistant<|channel|>final<|message|>No.",
                            False),
    "channels of gpt-oss without a final one": ("<|channel|>analysis<|message|>Yes, a cat", None),
    "special tokens": ("Yes.<|im_end|></s>", True),
    "bold": ("**Yes** - it is a thing.", True),
    "in quotes": ("'no', it", False),
    "full-width": ("Ｙｅｓ。", True),
    "in italics": ("_No_, it is not.", False),
    "label": ("Answer: Yes, it can.", True),
    "bold label": ("**Answer:** no", False),
    "a sentence with a label": ("The answer is 'yes'.", True),
    "JSON": ('{"answer": "yes", "explanation": "no doubt"}', True),
    "input repeated": ("Input: 'cat'\n\nYes, it can.", True),
    "label in a later line": ("A cat is an animal.\n\nAnswer: yes", True),
    "two verdicts that differ": ("Yes.\n...\nFinal answer: no", None),
    "two verdicts that are the same": ("Yes.\nIt can.\nFinal answer: yes", True),
    "yes and no": ("Yes and no.", None),
    "yes or no": ("Yes or no: hard to say", None),
    "yes/no": ("Yes/No", None),
    "no doubt": ("No doubt about that!", None),
    "a longer word": ("Nothing of the kind", None),
    "maybe": ("Maybe yes", None),
    "nothing": ("", None),
    "no and a reason": ("No and here is why.", False),
    "a label on a line of its own": ("Answer:\nYes", True),
    "a label on a line of its own, then a sentence": ("**Answer:**\n\nYes it can be drawn.", True),
    "the noun on a line of its own": ("'Cat'\n\nYes", True),
    "the noun and a colon": ("cat: no", False),
    "the noun in quotes and a colon": ("'Cat': Yes, it can.", True),
    "a pleasantry": ("Sure! Yes", True),
    "a pleasantry, then a sentence": ("Of course! Yes, it can be drawn.", True),
    "a pleasantry on a line of its own": ("Certainly.\n\nNo, it is abstract.", False),
    "bold with a full stop": ("**Yes**.", True),
    "an introduction": ("Here is my answer: Yes.", True),
    "a line of its own": ("A cat is an animal.\n\n**Yes**\n\nIt has fur.", True),
    "a sentence of its own": ("A cat is an animal. Yes. It has fur.", True),
    "a conclusion": ("A cat is an animal. So, yes, it can be drawn.", True),
    "a label in a sentence": ("It has no shape. Therefore, the answer is 'no'.", False),
    "the question, then the verdict": ("Can a text-to-image model clearly visualize 'cat'? Yes.", True),
    "the question on a line of its own": ('Can a text-to-image model clearly visualize "cat"?\nYes.', True),
    "another question": ("Is it a noun? Yes. It is hard to draw.", None),
    "other questions": ("Is it a noun? Yes. Can it be drawn? No.", None),
    "another question on a line of its own": ("Is it a noun?\nYes", None),
    "a code fence": ("```\nyes\n```", True),
    "a quoted block": ("> **Answer:**\n> **Yes**\n>\n> No text is needed.", True),
    "a number": ("1. Yes", True),
    "a sign before it": ("✅ Yes", True),
    "both on lines of their own": ("Yes\nNo", None),
    "both in sentences of their own": ("It is a thing. Yes, mostly. No, not always.", None),
    "no in a sentence": ("It is concrete, no doubt. No model fails at it.", None),
    "yes inside a sentence": ("I would say yes to that", None),
}  # fmt: skip


@pytest.mark.parametrize("name", VERDICTS)
def test_verdicts(name: str) -> None:
    text, verdict = VERDICTS[name]
    assert read(VISUAL, completion(text), read_verdict) is verdict


CUT_VERDICTS = {
    "cut behind the word: No|thing": ("No", "length", None),
    "cut in the sentence": ("Yes. A text-to-image model can clearly", "length", True),
    "filter behind the word": ("Yes", "content_filter", None),
    "filter in the sentence": ("No, because", "content_filter", False),
    "cut in the reasoning": ("<think>No. It", "length", None),
    "cut before anything": ("", "length", None),
    "cut behind a label": ("I think.\nAnswer: no", "length", None),
    "no finish reason": ("Yes", None, True),
    "an unknown finish reason": ("Yes", "end_turn", True),
}


@pytest.mark.parametrize("name", CUT_VERDICTS)
def test_cut_verdicts(name: str) -> None:
    text, finish, verdict = CUT_VERDICTS[name]
    assert read(VISUAL, completion(text, finish), read_verdict) is verdict


AB = ["A cat on a mat", "Two cats"]


def number_of(sign: str) -> tuple[str, str]:
    return ("１", "２") if sign == "１" else ("1", "2")


FORMS = ("1. {}", "1.{}", "(1) {}", "(1). {}", "1) {}", "1.) {}", "- 1. {}", "* 1. {}", "• 1) {}", "### 1. {}",
         "> 1. {}", "**1.** {}", "**1. {}**", "**1.**{}", "__1.__ {}", "1: {}", "1 : {}", "1 - {}", "1 – {}",
         "[1] {}", "[1]: {}", "１．{}", "１. {}", "１）{}", "1、{}", "1\\. {}", "#1: {}", "Prompt 1: {}",
         "**Prompt 1:** {}", "Image #1 - {}", "   1. {}", "\t1.\t{}", '1. "{}"', '1. **"{}"**', "1. **{}**",
         "1. *{}*", "1. `{}`", "1. “{}”", "1. „{}“", "1. «{}»", "1. 「{}」", "1. ‘{}’", "1. '{}'", '1. "{}',
         '1. {}"', '1. "{}",')  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_numbered_lists_in_every_common_form(form: str) -> None:
    """Two items in this form, after a sentence."""
    number = next(sign for sign in ("１", "1") if sign in form)
    lines = [form.replace(number, each).format(text) for each, text in zip(number_of(number), AB, strict=True)]
    assert read(CAT, completion("\n".join(["Here are 2 prompts:", *lines])), read_prompts) == AB


PROMPTS = {
    "reasoning with a list in it": ("<think>\n1. draft\n2. draft\n</think>\n1. A cat", ["A cat"]),
    "reasoning alone": ("<think>\n1. draft\n2. draft", None),
    "reasoning without a beginning": ("1. draft\n</think>\n1. A cat", ["A cat"]),
    "no list": ("I can't do that.", None),
    "duplicates": ("1. A cat\n2. A cat\n3. Two cats", ["A cat", "Two cats"]),
    "an empty item": ("1. A cat\n2.\n3. Two cats", ["A cat", "Two cats"]),
    "a number on a line of its own": ("1.\nA cat\n2.\nTwo cats", ["A cat", "Two cats"]),
    "an item of signs": ("1. A cat\n2. ---\n3. Two cats", ["A cat", "Two cats"]),
    "a caption that begins with a number": ("1. 3 cats run\n2. 1.5 m of cat", ["3 cats run", "1.5 m of cat"]),
    "a line that begins with a number": ("1. A cat\n1.5 m tall\n10 cats", ["A cat"]),
    "a line that begins with a year": ("1. A cat in\n1984. Neon\n2. Two cats", ["A cat in", "Two cats"]),
    "a line that begins with a time": ("1. A cat at\n2:30 in the night\n2. Two cats", ["A cat at", "Two cats"]),
    "a list that begins again": ("1. A cat\n2. Two cats\n\nMore:\n1. Three cats", ["A cat", "Two cats", "Three cats"]),
    "every number is 1": ("1. A cat\n1. Two cats\n1. Three cats", ["A cat", "Two cats", "Three cats"]),
    "a list that begins at 0": ("0. A cat\n1. Two cats", ["A cat", "Two cats"]),
    "a list that counts down": ("3. A cat\n2. Two cats\n1. Three cats", ["A cat", "Two cats", "Three cats"]),
    "blank lines between": ("1. A cat\n\n2. Two cats\n\n", ["A cat", "Two cats"]),
    "other line ends": ("1. A cat\r\n2. Two cats\r\n", ["A cat", "Two cats"]),
    "a wrapped item": ("1. A cat\n   on a mat\n2. Two cats", ["A cat on a mat", "Two cats"]),
    "an item with points": ("1. A cat\n   - on a mat\n   - at night\n2. Two", ["A cat on a mat at night", "Two"]),
    "a remark below": ("1. A cat\nnot this\n2. Two cats\n\nEnjoy!", ["A cat", "Two cats"]),
    "all on one line": ("1. A cat 2. Two cats 3. Three cats", ["A cat", "Two cats", "Three cats"]),
    "a number inside": ("1. A cat with No 2. on it", ["A cat with No 2. on it"]),
    "code fence": ("```\n1. A cat\n2. Two cats\n```", ["A cat", "Two cats"]),
    "lead-in, the rest names the noun": ("1. **A cat**: a cat on a mat", ["a cat on a mat"]),
    "lead-in with the colon inside": ("1. **Sunset:** Two cats", ["Two cats"]),
    "lead-in with a dash": ("1. **Sunset** – Two cats\n2. **Dawn** - A cat", ["Two cats", "A cat"]),
    "lead-in and quotes": ('1. **Sunset**: "Two cats"', ["Two cats"]),
    "lead-in with the number": ("**1. Sunset:** Two cats", ["Two cats"]),
    "lead-in, the rest does not name the noun": ("1. **A cat on a mat**: in oil", ["A cat on a mat: in oil"]),
    "bold words": ("1. **A cat** on a **mat**", ["A cat on a mat"]),
    "titles with text below": ("### 1. Sun\nA cat.\n\n### 2. Dawn\n\nTwo cats.\n\nEnjoy!", ["A cat.", "Two cats."]),
    "bold titles with indented text": ("1. **Sun**\n   A cat.\n2. **Dawn**\n   It sits.", ["A cat.", "Dawn: It sits."]),
    "titles alone": ("### 1. A cat\n### 2. Two cats\n\nEnjoy these cats!", ["A cat", "Two cats"]),
    "apostrophes": ("1. The cats' bowl\n2. 'Tis a cat's bowl", ["The cats' bowl", "'Tis a cat's bowl"]),
    "apostrophes in quotes": ("1. 'A cat's bowl'", ["A cat's bowl"]),
    "inch marks": ('1. A cat on a 27" screen\n2. Two cats, 27"\n3. "A cat, 5" x 7""',
                   ['A cat on a 27" screen', 'Two cats, 27"', 'A cat, 5" x 7"']),
    "a quote inside": ('1. A cat says "hi"\n2. "Hi" says a cat', ['A cat says "hi"', '"Hi" says a cat']),
    "quotes at both ends": ('1. "Hi" says a cat, "bye"', ['"Hi" says a cat, "bye"']),
    "quotes inside quotes": ('1. "A cat, "Hi" on it"\n2. “A cat says ‘hi’”', ['A cat, "Hi" on it', "A cat says ‘hi’"]),
    "a full stop behind the quote": ('1. "A cat sits".', ["A cat sits."]),
    "special tokens": ("1. A cat\n2. Two cats<|im_end|>", ["A cat", "Two cats"]),
    "notes below": ("1. A cat\n2. Two cats\n\nNotes:\n1. No style twice.\n2. Cats vary.", ["A cat", "Two cats"]),
    "notes in bold": ("1. A cat\n2. Two cats\n\n**Additional Notes**\n\n1) Cats vary.", ["A cat", "Two cats"]),
    "notes under a heading": ("1. A cat\n\n### Tips for use:\n1. Cats vary.\n2. Cats differ.", ["A cat"]),
    "a note, then the list goes on": ("1. A cat\n\nNote: a part.\n\n2. Two cats", ["A cat", "Two cats"]),
    "a note above": ("Note: two prompts.\n1. A cat\n2. Two cats", ["A cat", "Two cats"]),
    "a note on each item": ("1. A cat\n   Note: soft light\n1. Two cats\n   Note: fog", ["A cat", "Two cats"]),
    "a caption about notes": ("1. A cat\n2. Notes: paper and a cat\n3. Two cats",
                              ["A cat", "Notes: paper and a cat", "Two cats"]),
    "a hyphen of Unicode behind the number": ("1 ‐ A cat\n2 ‑ Two cats\n3 − 3 cats", ["A cat", "Two cats", "3 cats"]),
    "a bullet behind the number": ("1 • A cat\n2 · Two cats", ["A cat", "Two cats"]),
    "a long dash behind the number": ("1 — A cat\n2 ― Two cats", ["A cat", "Two cats"]),
    "a bullet of Unicode before the number": ("‐ 1. A cat\n▪ 2. Two cats", ["A cat", "Two cats"]),
    "dashes instead of numbers": ("Here you are:\n– A cat\n– Two cats", ["A cat", "Two cats"]),
    "bullets instead of numbers": ("• A cat\n  • with a hat\n• Two cats", ["A cat", "Two cats"]),
    "hyphens instead of numbers, lead-ins": ("- **Sun**: A cat\n- **Dawn** — Two cats", ["A cat", "Two cats"]),
    "bullets and notes below": ("- A cat\n- Two cats\n\nNotes:\n- Each cat prompt varies", ["A cat", "Two cats"]),
    "notes above bullets": ("Notes on this cat list:\n- A cat\n- Two cats", ["A cat", "Two cats"]),
    "bullets of a refusal": ("I can't do that:\n- no topic\n- no cat", None),
    "lead-in with a hyphen of Unicode": ("1. **Sun** ‐ A cat\n2. **Dawn** − Two cats", ["A cat", "Two cats"]),
    "lead-in with a bullet": ("1. **Sun** • A cat\n2. **Dawn** · Two cats", ["A cat", "Two cats"]),
    "lead-in with a long dash": ("1. **Sun** — A cat\n2. **Dawn** ― Two cats", ["A cat", "Two cats"]),
    "lead-in with the dash inside": ("1. **Sun –** A cat\n2. **Dawn -** Two cats", ["A cat", "Two cats"]),
    "a compound in bold": ("1. A **well-known** cat\n2. **half**-asleep cat", ["A well-known cat", "half-asleep cat"]),
    "points with other dashes": ("1. A cat\n   – on a mat\n   ‐ at night", ["A cat on a mat at night"]),
    "control signs and spaces": ("1. A\x0bcat\u00a0 sits\n2. Two\tcats", ["A cat sits", "Two cats"]),
}  # fmt: skip


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts(name: str) -> None:
    text, captions = PROMPTS[name]
    assert read(CAT, completion(text), read_prompts) == captions


CUT_PROMPTS = {
    "the last line is incomplete": ("1. A cat\n2. Two ca", "length", ["A cat"]),
    "the last line is complete": ("1. A cat\n2. Two cats\n", "length", ["A cat", "Two cats"]),
    "the first line is incomplete": ("1. A c", "length", None),
    "a filter": ("1. A cat\n2. Two", "content_filter", ["A cat"]),
    "a wrapped item is incomplete": ("1. A cat\n2. Two cats\n   on a", "length", ["A cat"]),
    "the text below a title is missing": ("### 1. Sunset\nA cat.\n### 2. Dawn\nTwo", "length", ["A cat."]),
    "in the second reasoning": ("1. A cat\n<think>2. draft", "stop", ["A cat"]),
    "a number is incomplete": ("1. A cat\n2", "length", ["A cat"]),
}


@pytest.mark.parametrize("name", CUT_PROMPTS)
def test_cut_prompts(name: str) -> None:
    text, finish, captions = CUT_PROMPTS[name]
    assert read(CAT, completion(text, finish), read_prompts) == captions


HUGE = """
import json, resource
resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))
from tests.odd.test_answers import CAT, VISUAL, completion, read, read_prompts, read_reply, read_verdict
from randcond.data.concepts.verdicts import read_verdicts
for text in ('"', "**", "*a ", "1. *a ", "1. **a" + " " * 99, '{"a":', '{"a":1', "[", "<think>", "</think>", "1. a\\n",
             ". ", "answer: ", "cat: - ", "sure! ", "Is it? Yes. ", "<|channel|>", "Notes:\\n1. a\\n", "- cat\\n"):
    reply = completion(text * (10**7 // len(text)))
    read(CAT, reply, read_prompts)
    read(VISUAL, reply, read_verdict)
    read_verdicts(read_reply(json.dumps(reply).encode()).answer.text, ("contains_animals",), {"s1": "my dog"})
use = resource.getrusage(resource.RUSAGE_SELF)
print(f"{use.ru_maxrss >> 10} MB, {use.ru_utime:.0f} s")
"""


@pytest.mark.slow
def test_huge_hostile_answers_are_read_within_2_gb() -> None:
    """Of the kinds that would make a careless expression take hours."""
    command = [sys.executable, "-c", HUGE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    print(done.stdout)


@pytest.mark.parametrize(
    "text",
    ["Answer 'yes' or 'no': No. It is abstract.", "**Answer ('yes' or 'no'):** no", "No matter the style, it can."],
)
def test_words_of_the_question_and_of_idioms_are_no_verdict(text: str) -> None:
    with pytest.raises(Unusable):
        read_verdict(Question("", ""), Answer(text))
