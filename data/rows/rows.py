"""Rows as columns of values: what each reader of text gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rows:
    """Some rows of a file, by column."""

    names: list[str]  # our names of the columns
    columns: list[Sequence[Any]]  # the values of each column
    lines: Sequence[int]  # the number of the line in which each row begins
