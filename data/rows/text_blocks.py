"""Reads a text file in blocks of whole lines, in UTF-8 or UTF-16, with any line ends, in bounded memory."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from randcond.data.inputs.compressed import Readable, read_up_to
from randcond.data.rows.encodings import Encoding, as_utf8, undecodable

BLOCK = 1 << 22  # bytes of text in a block
LONGEST = 1 << 24  # bytes of a line, and of a row of csv


@dataclass
class Block:
    """Some whole lines of a file. Their ends are line feeds; the last line of a file may have none."""

    start: int  # the number of its first line, from 1
    text: str
    bad: dict[int, tuple[str, str]] = field(default_factory=dict)  # line number -> (reason, cause); such text is no use

    def lines(self) -> list[str]:
        """Returns the lines without their ends."""
        lines = self.text.split("\n")
        if not lines[-1]:
            lines.pop()
        return lines


def text_blocks(file: Readable) -> Iterator[Block]:
    """Yields the text of a file in blocks of whole lines.

    A line with a NUL byte, in another encoding, or of more than 16 MiB is in `Block.bad`. Where reading fails (a cut
    compressed file), the whole lines before are yielded first, then the error is raised. Raises NotText if the file is
    not text in UTF-8 or UTF-16.
    """
    source, encoding = as_utf8(file)
    number, rest = 1, b""  # the number of the next line, and its start
    returns = None  # whether the lines end in carriage returns alone
    overlong = False  # `rest` belongs to a line that is too long, and was dropped
    while True:
        data, error = read_up_to(source, BLOCK)
        if returns is None:
            returns = b"\r" in data and b"\n" not in data
        if returns:
            if (place := data.find(b"\n")) >= 0:
                line = number + data.count(b"\r", 0, place)
                error = ValueError(f"line {line} ends in a line feed, but the lines before in a carriage return alone")
                data = data[:place]
            data = data.replace(b"\r", b"\n")
        at_end = len(data) < BLOCK
        if overlong:
            end = data.find(b"\n") + 1
            if not end and not at_end and error is None:
                continue
            data, overlong, number = data[end:] if end else b"", False, number + 1
        data = rest + data
        cut = len(data) if at_end and error is None else data.rfind(b"\n") + 1
        whole, rest = data[:cut], data[cut:]
        if (first := (whole.find(b"\n") + 1) or len(whole)) > LONGEST:
            yield _too_long(number)
            whole, number = whole[first:], number + 1
        if whole:
            yield _block(whole, number, encoding)
            number += whole.count(b"\n")
        if len(rest) > LONGEST:
            yield _too_long(number)
            rest, overlong = b"", True
        if error is not None:
            raise error
        if at_end:
            return


def _too_long(number: int) -> Block:
    cause = f"is longer than {LONGEST >> 20} MB; check that the file is text with one row on each line"
    return Block(number, "\n", {number: ("line too long", cause)})


def _block(data: bytes, start: int, encoding: Encoding) -> Block:
    try:
        text, decoded = data.decode(), True
    except UnicodeDecodeError:
        text, decoded = data.decode("utf-8", "surrogateescape"), False
    if "\r" in text:
        text = text.replace("\r\n", "\n")
        if "\r" in text:  # a file that was converted twice; or the end of the file
            text = re.sub("(?<!\r)\r++(\n|\\Z)", "\n", text)
    if "\ufeff" in text:  # a byte-order mark; files that were joined have several
        text = re.sub("^\ufeff", "", text, flags=re.MULTILINE)
    block = Block(start, text)
    if not decoded or "\0" in text:
        for number, line in enumerate(block.lines(), start):
            if "\0" in line:
                block.bad[number] = ("NUL byte", "has a NUL byte; repair or remove the line")
            elif not decoded and (cause := undecodable(line, encoding)):
                block.bad[number] = (f"not {encoding.name}", cause)
    return block
