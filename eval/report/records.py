"""What a report is made of."""

from dataclasses import dataclass, field
from pathlib import Path

from randcond.eval.report.collect import Row
from randcond.eval.report.repetitions import Verdict
from randcond.launch.config.sections import Config
from randcond.launch.config.tables import Picture


@dataclass(frozen=True)
class Report:
    """What is written: where, under which title, about which experiments."""

    out: Path
    title: str
    claim: str
    rows: list[Row]
    configs: dict[str, Config]
    following: list[str]  # commands to try next
    verdicts: list[Verdict] = field(default_factory=list)  # on the table's claims
    figures: list[tuple[Picture, list[Config]]] = field(default_factory=list)  # drawn here, and out of what
    repetitions: dict[str, list[Row]] = field(default_factory=dict)  # the rows behind the rows
    replicates: dict[str, list[str]] = field(default_factory=dict)  # what each repetition overrides in every row
