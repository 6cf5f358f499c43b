"""A journal of a language model's answers: a file with one JSON line per question, so that no answer is lost."""

import json
import os
from pathlib import Path
from typing import Any

from randcond.launch.errors import UserError


class Journal:
    """The answers so far. Each line is {id, answer, tokens: [in, out]}, or {id, unusable, tokens} if unusable."""

    def __init__(self, path: Path, model: str, read_only: bool = False) -> None:
        """`model`: the model that answers. `read_only`: don't create or repair the file.

        Ignores an incomplete last line, which a killed process can leave behind; removes it unless `read_only`.
        Raises UserError if the journal belongs to another model or contains a damaged line.
        """
        self.path = path
        self.answers: dict[str, Any] = {}
        self.unusable: set[str] = set()
        self.tokens = [0, 0]
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        if lines and not lines[-1].endswith(b"\n"):
            incomplete = len(lines.pop())
            if not read_only:  # the caller holds the lock, so no other process is writing this line
                os.truncate(path, path.stat().st_size - incomplete)
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                if number == 1:
                    journal_model = entry["model"]
                    continue
                self.tokens = [sum(pair) for pair in zip(self.tokens, entry["tokens"], strict=True)]
                if "unusable" in entry:
                    self.unusable.add(entry["id"])
                else:
                    self.answers[entry["id"]] = entry["answer"]
            except (KeyError, TypeError, ValueError):
                raise UserError(
                    f"{path}, line {number}: not a journal entry; remove the line, then its question is asked again"
                ) from None
        if lines and journal_model != model:
            raise UserError(
                f"{path}: contains answers of {journal_model}, expected {model}; remove it, or use {journal_model}"
            )
        if read_only:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a")
        if not lines:
            self._write({"model": model})

    def __contains__(self, question: str) -> bool:
        return question in self.answers or question in self.unusable

    def add(self, question: str, answer: Any, tokens: tuple[int, int] = (0, 0)) -> None:
        """Writes the answer to a question. `question`: its id. `tokens`: (in, out)."""
        self.answers[question] = answer
        self.tokens = [self.tokens[0] + tokens[0], self.tokens[1] + tokens[1]]
        self._write({"id": question, "answer": answer, "tokens": tokens})

    def give_up(self, question: str, answer: str, tokens: tuple[int, int] = (0, 0)) -> None:
        """Records that a question has no usable answer. `answer`: the last answer, for the user to look at."""
        self.unusable.add(question)
        self.tokens = [self.tokens[0] + tokens[0], self.tokens[1] + tokens[1]]
        self._write({"id": question, "unusable": answer, "tokens": tokens})

    def _write(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self._file.flush()  # from here on the answer survives if the process is killed

    def close(self) -> None:
        """Syncs the file to disk and closes it."""
        os.fsync(self._file.fileno())
        self._file.close()
