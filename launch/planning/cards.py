"""What single GPUs of 8 to 141 GB can train: the settings that make it fit, the micro-batch, the predicted speed."""

from collections.abc import Sequence
from dataclasses import dataclass

from randcond.launch.config.gpus import find_gpu
from randcond.launch.config.sections import Config
from randcond.launch.planning.costs import Cluster, Sizes
from randcond.launch.planning.fitting import changed, fewest_changes, overrides
from randcond.launch.planning.planner import plan

CARDS = ("rtx4060", "rtx3080", "rtx4070", "rtx4080", "rtx4090", "rtx5090", "a100-40", "h100", "h200")


@dataclass(frozen=True)
class CardPlan:
    """What one GPU can do with an experiment's student."""

    card: str
    memory_gb: float  # that the card has
    settings: str  # overrides without which it does not fit; "" if none is needed
    micro_batch: int  # 0: it does not fit with any setting
    needed_gb: float
    samples_per_second: float


def card_plans(config: Config, sizes: Sizes, efficiency: float, cards: Sequence[str] = CARDS) -> list[CardPlan]:
    """Returns what each card can train, alone."""
    rows = []
    for card in cards:
        cluster = Cluster(find_gpu(card), 1, 1)
        changes = fewest_changes(config, sizes, cluster)
        if changes is None:
            rows.append(CardPlan(card, cluster.gpu.memory_gb, "", 0, 0.0, 0.0))
            continue
        found = plan(changed(config, changes), sizes, cluster, efficiency)
        has = cluster.gpu.memory_gb, overrides(changes)
        rows.append(CardPlan(card, *has, found.micro_batch, found.needed_gb, found.samples_per_second))
    return rows


def cards_table(config: Config, rows: Sequence[CardPlan], efficiency: float, source: str) -> str:
    """Returns the table as text: a line per card."""
    lines = [
        f"{config.name}: {config.student.rule} of {config.teacher.path}, {config.engine.precision}, global batch "
        f"{config.train.global_batch}, one GPU at {efficiency:.0%} of its peak ({source})",
        f"{'GB':>5}  {'card':12}{'micro':>6}{'GB used':>9}{'samples/s':>11}  settings that make it fit",
    ]
    for row in rows:
        line = f"{row.memory_gb:5g}  {row.card:12}"
        if row.micro_batch:
            line += f"{row.micro_batch:6}{row.needed_gb:9.1f}{row.samples_per_second:11.3g}  {row.settings}"
        else:
            line += "  does not fit with any setting"
        lines.append(line.rstrip())
    return "\n".join([*lines, ""])
