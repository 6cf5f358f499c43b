"""Reads answers of a language model: yes or no, and numbered lists of captions."""

import re
import unicodedata
from dataclasses import dataclass, field

from randcond.data.captions.row_filter import clean_text
from randcond.data.texts.llm import Question
from randcond.data.texts.quotes import without_marks
from randcond.data.texts.replies import Answer, Unusable

_LABEL = r"(?:the |my |final )*(?:answer|output|verdict|response|result|conclusion)(?: is)?[\W_]*"
_YES_OR_NO = (
    r"(yes|no)(?![^\W_]|-\w)(?!\W*(?:/|(?:or|and)\W+(?:yes|no)\b)|\s+(?:doubt|problem|question|matter|issue|wonder)\b)"
)
_VERDICT = re.compile(rf"[\W_]*(?:{_LABEL})?{_YES_OR_NO}", re.IGNORECASE)  # at the beginning of an answer
_LATER_VERDICT = re.compile(rf"[\W_]*{_LABEL}{_YES_OR_NO}", re.IGNORECASE)  # at the beginning of a later line

_ITEM = re.compile(
    r"(?P<before>[\s>#*_•·+–—-]*)"
    r"(?:(?:prompt|image|scene|caption|item|no)\b\.?\s*)?#?"
    r"(?:[(\[（【](?P<inside>\d{1,4})[)\]）】][.:]?"
    r"|(?P<number>\d{1,4})(?:\s?\\?(?:[.:．：](?!\d)|[)\]）、。])+|\s*[-–—](?=\s)))"
    r"(?P<after>[*_]*)(?P<text>.*)",
    re.IGNORECASE,
)
_INLINE = re.compile(r"\s[(*]*(\d{1,4})[.)][*]*\s+(?=\S)")
_TITLE = re.compile(r"(\*\*|__)(?P<lead>(?:(?!\1).)+)\1\s*[:：]?$")
_LEAD_IN = re.compile(r"(\*\*|__)(?P<lead>.+?)(?:\s*[:：]\1|\1\s*[:：]|\1\s*[–—]|\1\s+-(?=\s))\s*(?P<rest>\S.*)$")
_RANGE = 10  # how far the numbers of neighbouring items may be apart


def read_verdict(question: Question, answer: Answer) -> bool:
    """Returns True for yes and False for no. Raises Unusable if the answer is not certain.

    The verdict is the first word, or what follows a label ("Answer: yes") at the beginning of a line. Several verdicts
    must be the same. If the answer was cut off right behind the word, the word may be incomplete ("No|thing").
    """
    lines = unicodedata.normalize("NFKC", answer.text).strip(" \t").splitlines(keepends=True)
    lines = [line for line in lines if line.strip() and not line.startswith("Input:")]
    verdicts = set()
    for number, line in enumerate(lines):
        match = (_LATER_VERDICT if number else _VERDICT).match(line)
        complete = not answer.cut or number < len(lines) - 1 or (match and match.end() < len(line))
        if match and complete:
            verdicts.add(match[1].lower())
    if len(verdicts) != 1:
        raise Unusable
    return verdicts == {"yes"}


@dataclass
class _Item:
    """One item of a numbered list."""

    indent: int
    text: str
    is_title: bool  # a heading, or all in bold
    more: list[str] = field(default_factory=list)  # the lines that continue it
    below: str = ""  # the text below a title


def read_prompts(question: Question, answer: Answer) -> list[str]:
    """Returns the items of a numbered list as cleaned captions, without numbers, quotes, emphasis and duplicates.

    - An item begins with a number: `1.` `1)` `(1)` `[1]` `1:` `1 -`, full-width too, behind any bullet, heading or bold
      mark. The number must be 0, 1 or near the number before it: "1984. A street" is no item. Neither is "1.5 m".
    - Indented lines directly below an item continue it. So does the line below a number that stands alone. Other lines
      without a number are ignored.
    - A bold lead-in before a colon or dash is a title. It comes off if the rest names the noun of the question,
      otherwise both stay: "Sunset: it sleeps". Text below titles (headings, or all in bold) counts in their place if
      there is such text below every title and it names the noun.
    - If the answer was cut off, its incomplete last line does not count, and neither does the item that it continues.

    Raises Unusable if there is no item.
    """
    match = re.search(r"Input: '(.*)'$", question.user)
    noun = match[1] if match else ""
    items = _items(answer.text, answer.cut)
    titles = [item for item in items if item.is_title and not item.more]
    below_titles = bool(titles) and all(_names(noun, item.below) for item in titles)
    captions = (_caption(item, noun, below_titles) for item in items)
    if not (distinct := list(dict.fromkeys(caption for caption in captions if re.search(r"\w", caption)))):
        raise Unusable
    return distinct


def _items(text: str, cut: bool) -> list[_Item]:
    """Returns the items of a list. `cut`: the last line is incomplete."""
    lines = re.split(r"\r\n?|\n", text)
    incomplete = lines.pop() if cut else ""
    items: list[_Item] = []
    last, is_open = 0, False  # the number of the last item; whether the next line may continue it
    for line in lines:
        match = _ITEM.match(line)
        number = int(match["inside"] or match["number"]) if match else 0
        if match and (number <= 1 or abs(number - last) <= _RANGE):
            last, texts = _split_inline(number, _item_text(match))
            items += [_Item(_indent(line), each, _is_title(match, each)) for each in texts]
            is_open = True
        elif not re.search(r"\w", line):
            is_open = False
        elif items and is_open and (_indent(line) > items[-1].indent or not items[-1].text):
            items[-1].more.append(re.sub(r"^\s*[-*•]\s+", "", line).strip())
        else:
            is_open = False
            if items and items[-1].is_title and not items[-1].below:
                items[-1].below = line.strip()
    if items and is_open and _indent(incomplete) > items[-1].indent and not _ITEM.match(incomplete):
        items.pop()  # the line that was cut off belongs to it
    elif cut and len(items) > 1 and items[-2].below and items[-1].is_title and not items[-1].below:
        items.pop()  # the text below the title is missing
    return items


def _is_title(match: re.Match[str], text: str) -> bool:
    return bool(re.search(r"#\s", match["before"]) or _TITLE.match(text))


def _item_text(match: re.Match[str]) -> str:
    """Returns the text behind the number, with the bold mark that the number may share with it."""
    text = match["text"].strip()
    opened = re.search(r"(\*\*|__)$", match["before"])
    if opened and not match["after"]:
        return opened[1] + text  # **1. A cat**
    return text if opened else match["after"] + text


def _split_inline(number: int, text: str) -> tuple[int, list[str]]:
    """Splits items that stand on one line: "A cat 2. A dog 3. A cow". Returns the last number, and the texts.

    Two more numbers in sequence must follow: one may be a part of the text.
    """
    marks: list[re.Match[str]] = []
    for mark in _INLINE.finditer(text):
        if int(mark[1]) == number + len(marks) + 1:
            marks.append(mark)
    if len(marks) < 2:
        return number, [text]
    starts = [0, *(mark.end() for mark in marks)]
    ends = [*(mark.start() for mark in marks), len(text)]
    return number + len(marks), [text[start:end].strip() for start, end in zip(starts, ends, strict=True)]


def _caption(item: _Item, noun: str, below_titles: bool) -> str:
    text = " ".join(" ".join([item.text, *item.more]).split())
    if item.is_title and item.text:
        title = _TITLE.match(item.text)
        lead, rest = title["lead"] if title else item.text, " ".join(item.more)
        rest = rest or (item.below if below_titles else "")
    elif lead_in := _LEAD_IN.match(text):
        lead, rest = lead_in["lead"], lead_in["rest"]
    else:
        lead, rest = text, ""
    lead, rest = (without_marks(clean_text(part)) for part in (lead, rest))
    if not rest or _names(noun, rest):
        return rest or lead
    return f"{lead.rstrip(':')}: {rest}"


def _names(noun: str, text: str) -> bool:
    """Returns True if a text names a noun, in the singular or plural."""
    stem = re.sub(r"(?<=\w{3})(?:y|fe?|us|is|on)$", "", noun)
    return bool(noun and re.search(rf"(?<!\w){re.escape(stem)}", text, re.IGNORECASE))


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
