"""What can be known to be wrong with an evaluation before any image is drawn."""

from pathlib import Path

from randcond.data.digits.world import read_label
from randcond.data.inputs import missing_input
from randcond.eval.compbench.prompts import read_complex_kinds, read_prompts
from randcond.eval.metrics import find_metrics
from randcond.eval.prompts import choose_prompts, first_prompts, grid_prompts
from randcond.eval.statistics import find_statistics
from randcond.launch.config import Config
from randcond.launch.protocols import protocol_of


def check_evaluation(config: Config) -> None:
    """Raises ValueError naming the key: captions, metrics, protocol; captions that the digits' judge can't read."""
    metrics = find_metrics(config.eval.metrics)
    protocol_of(config.eval)
    prompts = choose_prompts(config)
    if "digits" in metrics:
        for caption in prompts.captions:
            read_label(caption)
    bench = config.eval.compbench
    for category in bench.categories if bench.lists else ():
        listed = read_prompts(Path(str(bench.lists)), category)
        if category == "complex":
            read_complex_kinds(Path(str(bench.lists)), listed)
    parts = dict(prompts.splits)
    if config.train.eval_every and config.train.eval_size is not None:
        fewer = first_prompts(prompts, config.train.eval_size).splits
        parts |= {f"{split} (train.eval_size)": ids for split, ids in fewer.items()}
    for name, metric in metrics.items():
        for split, ids in parts.items():
            if len(ids) < metric.least:
                raise ValueError(
                    f"eval.metrics: {name} needs at least {metric.least} images, {split} has {len(ids)}: draw more, or "
                    f"take it out"
                )
        if metric.compares and config.eval.statistics is None:
            raise ValueError(
                f"eval.statistics: is missing, and {name} compares with real images: `randcond eval stats` makes them"
            )
        for split in prompts.splits if metric.compares else ():
            find_statistics(str(config.eval.statistics), split, str(metric.compares))
        if "inception" in metric.needs.values() and not Path(config.eval.inception).is_file():
            raise ValueError(
                f"eval.inception: no weights at {config.eval.inception}{missing_input(config.eval.inception)}"
            )
    grid_prompts(config)
