"""Reads answers of a language model: yes or no, and numbered lists of captions."""

import re
import unicodedata
from dataclasses import dataclass, field

from randcond.data.captions.row_filter import clean_text
from randcond.data.texts.llm import Question
from randcond.data.texts.quotes import without_marks
from randcond.data.texts.replies import Answer, Unusable

_MARKS = r"(?:[^\w\n]|_){0,20}"  # quotes, emphasis, bullets and blanks in a line
_LABEL = r"(?:here(?:['’]s| is) )?(?:the |my |final )*(?:answer|output|verdict|response|result|conclusion)(?: is\b)?"
_CONNECTIVE = r"(?:so|thus|therefore|hence|overall|in short|in conclusion)\b"
_PLEASANTRY = r"(?:sure|certainly|of course|okay|ok|well|absolutely|definitely)\s*[!.,:;–—-]"
_YES_OR_NO = (
    r"(?P<verdict>yes|no)(?![^\W_]|-\w)"
    r"(?!\W{0,20}(?:/|(?:or|and)\W{1,20}(?:yes|no)\b)|\s+(?:doubt|problem|question|matter|issue|wonder)\b)"
)
_ALONE = rf"(?={_MARKS}$|\s*[*_'\"”’]*\s*[,.;:!–—-])"  # a line or a sentence ends, or its first words do
_LONGEST_QUESTION = 300  # characters


def _beginning(of: str, what: str) -> re.Pattern[str]:
    return re.compile(rf"{of}{_MARKS}(?:{_CONNECTIVE}{_MARKS})?{what}", re.IGNORECASE | re.MULTILINE)


_SENTENCE_BEGINS = r"(?:^|[.!?]['\"”’*_)]{0,5}\s)"
_LABELLED = _beginning(_SENTENCE_BEGINS, rf"{_LABEL}{_MARKS}{_YES_OR_NO}")
_LINE = _beginning("^", _YES_OR_NO + _ALONE)
_SENTENCE = _beginning(_SENTENCE_BEGINS, _YES_OR_NO + _ALONE)

_HYPHENS, _DASHES = r"\-‐‑−", "–—―•·"  # a hyphen must be followed by a blank, where a word could follow
_BULLETS = rf"{_HYPHENS}{_DASHES}*+◦▪●‣"
_ITEM = re.compile(
    rf"(?P<before>[\s>#_{_BULLETS}]*)"
    r"(?:(?:prompt|image|scene|caption|item|no)\b\.?\s*)?#?"
    r"(?:[(\[（【](?P<inside>\d{1,4})[)\]）】][.:]?"
    rf"|(?P<number>\d{{1,4}})(?:\s?\\?(?:[.:．：](?!\d)|[)\]）、。])+|\s*[{_HYPHENS}{_DASHES}](?=\s)))"
    r"(?P<after>[*_]*)(?P<text>.*)",
    re.IGNORECASE,
)
_BULLET = re.compile(rf"\s*[{_BULLETS}](?=\s)\s*")
_INLINE = re.compile(r"\s[(*]*(\d{1,4})[.)][*]*\s+(?=\S)")
_TITLE = re.compile(rf"(\*\*|__)(?P<lead>(?:(?!\1).)+)\1\s*[:：{_HYPHENS}{_DASHES}]?$")
_LEAD_IN = re.compile(
    rf"(\*\*|__)(?P<lead>.+?)(?:\s*[:：]\1|\s+[{_HYPHENS}{_DASHES}]\1|\1\s*[:：{_DASHES}]|\1\s+[{_HYPHENS}](?=\s))"
    r"\s*(?P<rest>\S.*)$"
)
_REMARKS = re.compile(  # a line that begins remarks on the list
    r"[\W_]*(?:(?:additional|final|further|general|important|other|please|quick|some|style|usage)\s+)?"
    r"(?:notes?|tips?|remarks?|explanations?|disclaimers?|comments?|rationale)\b(?:[^:：\n]{0,40}[:：]|[\W_]*$)",
    re.IGNORECASE,
)
_RANGE = 10  # how far the numbers of neighbouring items may be apart


def read_verdict(question: Question, answer: Answer) -> bool:
    """Returns True for yes and False for no. Raises Unusable if the answer is not certain.

    The verdict is the first word, or what follows a label ("Answer: yes"), or what stands alone on a line or at its
    beginning ("Yes, it can"). Before the first word may stand only pleasantries ("Sure!"), a label or the noun. If
    there is no such verdict, one that stands so in a sentence counts. Several verdicts must be the same. The answer to
    another question ("Is it a noun? Yes.") is none. If the answer was cut off right behind the word, the word may be
    incomplete ("No|thing").
    """
    lines = unicodedata.normalize("NFKC", answer.text).strip(" \t").splitlines(keepends=True)
    text = "".join(line for line in lines if line.strip() and not line.startswith("Input:"))
    first = _first_word(_noun(question)).match(text)
    found = ([first] if first else []) + list(_LABELLED.finditer(text))
    found += [match for match in _LINE.finditer(text) if not _answers_another(question, text, match)]
    if not found:
        found = [match for match in _SENTENCE.finditer(text) if not _answers_another(question, text, match)]
    complete = [match for match in found if not answer.cut or match.end("verdict") < len(text)]
    verdicts = {match["verdict"].lower() for match in complete}
    if len(verdicts) != 1:
        raise Unusable
    return verdicts == {"yes"}


def _first_word(noun: str) -> re.Pattern[str]:
    """Returns the expression for a verdict at the beginning of an answer about a noun."""
    lead = rf"{_LABEL}|{_PLEASANTRY}" + (rf"|{re.escape(noun)}\W{{0,20}}?[:=\n–—-]" if noun else "")
    return re.compile(rf"[\W_]*(?>(?:{lead})[\W_]*)*{_YES_OR_NO}", re.IGNORECASE)


def _answers_another(question: Question, text: str, match: re.Match[str]) -> bool:
    """Returns True if a question other than the one that was asked stands right before a verdict."""
    before = text[max(0, match.start("verdict") - _LONGEST_QUESTION) : match.start("verdict")]
    ended = re.search(r"([^.!?\n]*)\?\W*$", before)
    return ended is not None and _words(ended[1]) not in _words(question.user)


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _noun(question: Question) -> str:
    """Returns the noun that a question is about, or an empty text."""
    match = re.search(r"Input: '(.*)'$", question.user)
    return match[1] if match else ""


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
      without a number are ignored. A list without any number counts if its bullets name the noun of the question.
    - Remarks ("Notes:") are ignored, up to an item that continues the numbers of the list.
    - A bold lead-in before a colon or dash is a title. It comes off if the rest names the noun of the question,
      otherwise both stay: "Sunset: it sleeps". Text below titles (headings, or all in bold) counts in their place if
      there is such text below every title and it names the noun.
    - If the answer was cut off, its incomplete last line does not count, and neither does the item that it continues.

    Raises Unusable if there is no item.
    """
    noun = _noun(question)
    items = _items(answer.text, answer.cut) or _bullets(answer.text, answer.cut, noun)
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
    remarks = False  # whether the line stands below the word "Notes"
    for line in lines:
        match = _ITEM.match(line)
        number = int(match["inside"] or match["number"]) if match else 0
        if items and not match and _REMARKS.match(line):
            remarks |= not (is_open and _indent(line) > items[-1].indent)  # else it is about this item
            is_open = False
        elif remarks and not match:
            continue
        elif remarks and number != last + 1:
            last = -_RANGE  # the items from here on are remarks, too
        elif match and (number <= 1 or abs(number - last) <= _RANGE):
            remarks = False
            last, texts = _split_inline(number, _item_text(match))
            items += [_Item(_indent(line), each, _is_title(match, each)) for each in texts]
            is_open = True
        elif not re.search(r"\w", line):
            is_open = False
        elif items and is_open and (_indent(line) > items[-1].indent or not items[-1].text):
            items[-1].more.append(_BULLET.sub("", line, count=1).strip())
        else:
            is_open = False
            if items and items[-1].is_title and not items[-1].below:
                items[-1].below = line.strip()
    if items and is_open and _indent(incomplete) > items[-1].indent and not _ITEM.match(incomplete):
        items.pop()  # the line that was cut off belongs to it
    elif cut and len(items) > 1 and items[-2].below and items[-1].is_title and not items[-1].below:
        items.pop()  # the text below the title is missing
    return items


def _bullets(text: str, cut: bool, noun: str) -> list[_Item]:
    """Returns the items of a list with bullets in place of numbers, or none if most of them don't name the noun."""
    lines = text.splitlines()[: -1 if cut else None]
    first = next((number for number, line in enumerate(lines) if _BULLET.match(line)), len(lines))
    remarks = (number for number, line in enumerate(lines) if number > first and _REMARKS.match(line))
    lines = lines[: next((number for number in remarks if not _BULLET.match(lines[number])), len(lines))]
    found = [(line, match) for line in lines if (match := _BULLET.match(line))]
    outer = min((_indent(line) for line, _ in found), default=0)
    texts = [line[match.end() :].strip() for line, match in found if _indent(line) == outer]
    if 2 * sum(_names(noun, text) for text in texts) <= len(texts):
        return []
    return [_Item(outer, text, bool(_TITLE.match(text))) for text in texts]


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
