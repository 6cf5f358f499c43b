"""Bad rows of a file: the first one is an error, or all are skipped, counted by reason, and the first three quoted."""

from collections import Counter

from randcond.launch.errors import UserError

QUOTED = 3


class BadRows:
    """What is wrong with the rows of one file."""

    def __init__(self, where: str, skip: bool = False) -> None:
        """`where`: names the file in messages. `skip`: count bad rows; without it the first one raises UserError."""
        self.where, self.skip = where, skip
        self.quotes: list[str] = []  # messages of the first bad rows
        self.total = 0  # bad rows so far
        self._counts: Counter[str] = Counter()

    def add(self, place: str, reason: str, cause: str, rows: int = 1) -> None:
        """Reports a bad row. Raises UserError unless bad rows are skipped.

        `place`: e.g. "line 7". `reason`: what it is counted under. `cause`: what is wrong, and the way out.
        """
        message = f"{self.where}, {place}: {cause}"
        if not self.skip:
            raise UserError(message)
        self._counts[reason] += rows
        self.total += rows
        if len(self.quotes) < QUOTED:
            self.quotes.append(message)

    def take_counts(self) -> Counter[str]:
        """Returns the number of bad rows by reason since the last call."""
        counts, self._counts = self._counts, Counter()
        return counts


def summary(where: str, quotes: list[str], total: int) -> str:
    """Returns one line about the skipped rows of a file: their number, and the first of them. `quotes`: not empty.

    >>> summary("a.csv", ["a.csv, line 5: has 3 fields"], 7)
    'a.csv: 7 bad rows are skipped (line 5: has 3 fields; ...)'
    """
    short = "; ".join(quote.removeprefix(where).removeprefix(", ") for quote in quotes)
    rows = "1 bad row is" if total == 1 else f"{total:,} bad rows are"
    return f"{where}: {rows} skipped ({short}{'; ...' if total > len(quotes) else ''})"
