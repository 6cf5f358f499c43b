"""The content of a report."""

from dataclasses import dataclass, field
from pathlib import Path

from randcond.eval.tables.collect import Row
from randcond.eval.tables.repetitions import Verdict
from randcond.launch.config.sections import Config
from randcond.launch.config.tables import Picture


@dataclass(frozen=True)
class Report:
    """Everything that write_report() writes."""

    out: Path  # the folder of the report
    title: str
    claim: str
    rows: list[Row]
    configs: dict[str, Config]  # experiment -> its configuration, in the first repetition
    next_commands: list[str]  # commands to try next
    verdicts: list[Verdict] = field(default_factory=list)  # one per claim of the table
    figures: list[tuple[Picture, list[Config]]] = field(default_factory=list)  # pictures drawn from configurations
    repetitions: dict[str, list[Row]] = field(default_factory=dict)  # repetition -> its rows; `rows` holds their means
    replicates: dict[str, list[str]] = field(default_factory=dict)  # repetition -> its overrides
