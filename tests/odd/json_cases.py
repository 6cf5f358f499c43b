"""Odd JSON Lines. Line 301 is the first that is odd."""

from functools import partial

from tests.odd.text_cases import TEXTS, Case, among, bad, jsonl_of, refused

row = partial(among, ".jsonl")
NOT_JSON, NO_OBJECT, NOT_TEXT, MISSING = "not JSON", "not a JSON object", "not text", "missing key"
DEEP = "line 301: not JSON (nested too deeply)"
TWICE = "not JSON (the key 'caption' occurs twice)"

JSON = [
    row("a line that is no JSON", b'{"caption": oops}', "line 301: not JSON (", NOT_JSON),
    row("a cut line", b'{"caption": "a c', "line 301: not JSON (", NOT_JSON),
    row("two objects on a line", b'{"caption": "a"} {"caption": "b"}', "line 301: not JSON", NOT_JSON),
    row("deep nesting", b"[" * 100_000, DEEP, NOT_JSON),
    row("deep nesting in another key", b'{"caption": "a", "x": ' + b'{"x":' * 100_000, DEEP, NOT_JSON),
    row(
        "a number of 5,000 digits",
        b'{"caption": "a", "x": ' + b"9" * 5000 + b"}",
        "line 301: not JSON (Exceeds the limit",
        NOT_JSON,
    ),
    row("a list", b'["a cat"]', "line 301: not a JSON object", NO_OBJECT),
    row("text alone", b'"a cat"', "line 301: not a JSON object", NO_OBJECT),
    row("a number as caption", b'{"caption": 7}', "line 301: caption is a number, expected text", NOT_TEXT),
    row("a list as caption", b'{"caption": ["a", "b"]}', "caption is a list", NOT_TEXT),
    row("NaN as caption", b'{"caption": NaN}', "caption is a number", NOT_TEXT),
    row("true as caption", b'{"caption": true}', "caption is true or false", NOT_TEXT),
    row("half a character", b'{"caption": "\\ud83d"}', "caption is half a character", NOT_TEXT),
    row("a whole character as two escapes", b'{"caption": "\\ud83d\\ude00"}', kept=("😀",)),
    row("null as caption", b'{"caption": null}', "", "empty"),
    row("NaN in another key", b'{"caption": "a", "aesthetic": NaN}', kept=("a",)),
    row("a missing key", b'{"text": "a"}', "line 301: has no key caption", MISSING),
    bad(
        "a first line without a caption",
        "a.jsonl",
        b'{"version": 1}\n' + jsonl_of(),
        "line 1: no column caption, text or prompt; it has version",
        MISSING,
        TEXTS,
    ),
    row("a key that occurs twice", b'{"caption": "a", "caption": "b"}', f"line 301: {TWICE}", NOT_JSON),
    bad(
        "a key that occurs twice in the first line",
        "a.jsonl",
        b'{"caption": "a", "caption": "b"}\n' + jsonl_of(),
        f"line 1: {TWICE}",
        NOT_JSON,
        TEXTS,
    ),
    row("a key of a part that is named alike", b'{"caption": "a", "x": {"caption": "b"}}', kept=("a",)),
    Case("keys with capitals and spaces", "a.jsonl", jsonl_of().replace(b'"caption"', b'" Text"')),
    refused(
        "two keys of one name", "a.jsonl", b'{"Text": "a", "text": "b"}\n', "'Text' and 'text' are both named text"
    ),
    row("empty lines and spaces around", b'\n  \n  {"caption": "a"}  ', kept=("a",)),
    bad(
        "an array in place of lines",
        "a.jsonl",
        b'[\n{"caption": "a"}\n]\n',
        "line 1: not JSON (Expecting value at column 2); write one object on each line",
        NOT_JSON,
        ["a"],
        2,
    ),
]
