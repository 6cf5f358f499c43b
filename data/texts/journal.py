"""A journal of a language model's answers: one JSON line per question, kept over kills."""

import json
import os
from pathlib import Path
from typing import Any

from randcond.launch.errors import UserError


class Journal:
    """The answers so far: lines {id, answer, tokens: [in, out]}, and {id, unusable} where none could be read."""

    def __init__(self, path: Path, model: str, read_only: bool = False) -> None:
        """`model`: who answers. A line that was cut by a kill is dropped; `read_only`: only from what is read.

        Raises UserError naming a journal of another model, or a damaged line.
        """
        self.path = path
        self.answers: dict[str, Any] = {}
        self.unusable: set[str] = set()
        self.tokens = [0, 0]
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        if lines and not lines[-1].endswith(b"\n"):
            cut = len(lines.pop())
            if not read_only:  # of a writer that is gone: this one has the lock
                os.truncate(path, path.stat().st_size - cut)
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                if number == 1:
                    asked = entry["model"]
                    continue
                self.tokens = [sum(pair) for pair in zip(self.tokens, entry["tokens"], strict=True)]
                if "unusable" in entry:
                    self.unusable.add(entry["id"])
                else:
                    self.answers[entry["id"]] = entry["answer"]
            except (KeyError, TypeError, ValueError):
                raise UserError(
                    f"{path}, line {number}: no entry of a journal; remove the line, it is asked again"
                ) from None
        if lines and asked != model:
            raise UserError(f"{path}: was answered by {asked}, not by {model}; remove it, or ask {asked}")
        if read_only:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a")
        if not lines:
            self._write({"model": model})

    def __contains__(self, question: str) -> bool:
        return question in self.answers or question in self.unusable

    def add(self, question: str, answer: Any, tokens: tuple[int, int] = (0, 0)) -> None:
        """Keeps an answer to a question, named by its id."""
        self.answers[question] = answer
        self.tokens = [self.tokens[0] + tokens[0], self.tokens[1] + tokens[1]]
        self._write({"id": question, "answer": answer, "tokens": tokens})

    def give_up(self, question: str, answer: str, tokens: tuple[int, int] = (0, 0)) -> None:
        """Keeps that a question has no answer that can be read; its last one stays for whoever wants to see why."""
        self.unusable.add(question)
        self.tokens = [self.tokens[0] + tokens[0], self.tokens[1] + tokens[1]]
        self._write({"id": question, "unusable": answer, "tokens": tokens})

    def _write(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self._file.flush()  # into the system's hands: a killed process loses nothing

    def close(self) -> None:
        """Forces it to the disk."""
        os.fsync(self._file.fileno())
        self._file.close()
