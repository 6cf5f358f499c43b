"""A journal of a language model's answers: a file with one JSON line per question, so that no answer is lost."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from randcond.launch.errors import UserError

_KINDS = ("answer", "unusable", "refused")  # the outcomes of a question


class Journal:
    """The outcomes so far: of each question either an answer, or what is said about the lack of one.

    Each line is {id, answer, tokens: [in, out]}; or it has `unusable` or `refused` in place of `answer`, with a text
    for the user to look at. Lines of the last two kinds may have `about`, see `give_up`.
    """

    def __init__(self, path: Path, model: str, read_only: bool = False) -> None:
        """`model`: the model that answers. `read_only`: don't create or repair the file.

        Ignores an incomplete last line, which a killed process can leave behind; removes it unless `read_only`.
        Raises UserError if the journal belongs to another model or contains a damaged line.
        """
        self.path = path
        self.answers: dict[str, Any] = {}
        self.unusable: set[str] = set()  # questions whose answers can't be used
        self.refused: set[str] = set()  # questions that the endpoint or its model refuses
        self.about: set[str] = set()  # what the unusable and refused questions are about
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
                kind = next(kind for kind in _KINDS if kind in entry)
                self._keep(entry["id"], kind, entry[kind], entry["tokens"], entry.get("about", ()))
            except (AttributeError, KeyError, RecursionError, StopIteration, TypeError, ValueError):
                raise UserError(f"{path}, line {number}: {_advice(number, line, model)}") from None
        if lines and journal_model != model:
            raise UserError(
                f"{path}: contains answers of {journal_model}, expected {model}; use another folder, or go on with "
                f"{journal_model}"
            )
        if read_only:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")
        if not lines:
            self._write({"model": model})

    def __contains__(self, question: str) -> bool:
        return question in self.answers or question in self.unusable or question in self.refused

    def add(self, question: str, answer: Any, tokens: tuple[int, int] = (0, 0)) -> None:
        """Writes the answer to a question. `question`: its id. `tokens`: (in, out)."""
        self._keep(question, "answer", answer, tokens, ())
        self._write({"id": question, "answer": answer, "tokens": tokens})

    def give_up(
        self,
        question: str,
        text: str,
        tokens: tuple[int, int] = (0, 0),
        kind: str = "unusable",
        about: Sequence[str] = (),
    ) -> None:
        """Records that a question has no usable answer.

        `text`: the last answer or the refusal, for the user to look at. `kind`: unusable or refused. `about`: what the
        question is about.
        """
        self._keep(question, kind, text, tokens, about)
        self._write({"id": question, kind: text, "tokens": tokens} | ({"about": about} if about else {}))

    def _keep(self, question: str, kind: str, value: Any, tokens: Sequence[int], about: Sequence[str]) -> None:
        self.tokens = [sum(pair) for pair in zip(self.tokens, tokens, strict=True)]
        self.answers.pop(question, None)
        self.unusable.discard(question)
        self.refused.discard(question)
        if kind == "answer":
            self.answers[question] = value
        else:
            (self.unusable if kind == "unusable" else self.refused).add(question)
            self.about.update(about)

    def _write(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self._file.flush()  # from here on the answer survives if the process is killed

    def close(self) -> None:
        """Syncs the file to disk and closes it."""
        os.fsync(self._file.fileno())
        self._file.close()


def _advice(number: int, line: bytes, model: str) -> str:
    """Returns what is wrong with a damaged line, and what to do."""
    if number > 1:
        return "not a journal entry; remove the line, then its question is asked again"
    first = json.dumps({"model": model}, ensure_ascii=False)
    place = "before this line" if line.startswith(b'{"id": ') else "in place of this line"
    return (
        f"expected the name of the model that gave the answers; if it was {model}, write {first} {place}, "
        f"otherwise use another folder"
    )
