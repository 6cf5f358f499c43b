"""Takes quotes and emphasis off captions that a language model wrote."""

import re

_CLOSING = {  # opening quote -> its closing ones
    '"': '"', "'": "'", "`": "`´'", "“": "”“", "”": "”", "„": "“”", "‟": "”", "‘": "’", "‚": "‘’", "«": "»", "»": "«",
    "‹": "›", "›": "‹", "「": "」", "『": "』", "《": "》", "〝": "〞", "＂": "＂", "❝": "❞",
}  # fmt: skip
_DOUBLE = '"“”„‟«»「」『』《》〝〞＂❝❞'  # these are never apostrophes
_EMPHASIS = re.compile(r"(?<![\w*`])(\*{1,3}|__|~~|`)(?=\S)(.{1,300}?)(?<=\S)\1(?![\w*`])")
_NESTED = 6  # quotes and emphasis around each other


def without_marks(text: str) -> str:
    r"""Returns a caption without the quotes around it and without Markdown's emphasis.

    Of quotes, only a pair around the whole caption comes off, and a double quote at one end without a partner.
    Apostrophes, inch marks and quotes inside stay.

    >>> without_marks('**"A cat\'s 27" screen."**'), without_marks('"A cat'), without_marks('"Hi" on a "mat"')
    ('A cat\'s 27" screen.', 'A cat', '"Hi" on a "mat"')
    """
    for _ in range(_NESTED):
        text = _EMPHASIS.sub(r"\2", text).strip("*_ ")
        text = _without_outer_quotes(text)
    return text


def _without_outer_quotes(text: str) -> str:
    if text[-1:] in (".", ",", ";") and text[:1] in _CLOSING and _is_pair(text[:-1]):  # "A cat",
        inner = text[1:-2].strip()
        return inner + ("." if text[-1] == "." and inner[-1:] not in (".", "!", "?") else "")
    if _is_pair(text):
        return text[1:-1].strip()
    doubles = [place for place, sign in enumerate(text) if sign in _DOUBLE and not _is_inch(text, place)]
    if doubles == [0]:
        return text[1:].strip()
    if len(text) > 1 and doubles == [len(text) - 1]:
        return text[:-1].strip()
    return text


def _is_pair(text: str) -> bool:
    """Returns True if the first and the last character are a pair of quotes, which is not closed before the end."""
    if len(text) < 2 or text[-1] not in _CLOSING.get(text[0], ""):
        return False
    depth, closed_early = 1, False
    for place in range(1, len(text) - 1):
        sign = text[place]
        if sign not in (text[0], text[-1]) or _is_inch(text, place):
            continue
        begins_a_word = not text[place - 1].isalnum() and text[place + 1].isalnum()
        opens = begins_a_word if text[0] == text[-1] else sign == text[0]
        if sign in "'’‘" and text[place - 1].isalnum() and text[place + 1].isalnum():
            continue  # an apostrophe
        if opens and closed_early:
            return False  # "Hello" says the cat, "bye"
        depth += 1 if opens else -1
        closed_early |= depth == 0
    return not closed_early or text[0] in "'‘‚"  # one sign like a closing single quote is an apostrophe: the dogs'


def _is_inch(text: str, place: int) -> bool:
    """Returns True for an inch or foot mark: behind a digit, before the end."""
    return text[place] in "\"'”’＂" and text[place - 1 : place].isdigit()
