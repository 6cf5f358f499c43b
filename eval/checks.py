"""Checks of an evaluation that need no image, network or device. They run before any image is drawn."""

from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from randcond.data.digits.world import IMAGE_SIZE, read_label
from randcond.data.inputs.catalogue import MissingInput, collecting_missing, missing_input
from randcond.data.teacher_settings import check_settings
from randcond.eval.compbench.prompts import read_complex_kinds, read_prompts
from randcond.eval.features.load import EXTRACTORS, check_weights
from randcond.eval.features.network_weights import TRANSFORMERS_FILES
from randcond.eval.features.open_clip_models import CLIP_FILES
from randcond.eval.geneval.networks import check_geneval_networks
from randcond.eval.geneval.run import geneval_items
from randcond.eval.geneval2.judge import check_judge
from randcond.eval.geneval2.run import geneval2_items
from randcond.eval.images.prompts import ALL, Prompts, choose_prompts, first_prompts, grid_prompts
from randcond.eval.scores.metrics import Metric, find_metrics, needed_extractors
from randcond.eval.scores.statistics import find_features, find_statistics
from randcond.eval.tables.table import COLUMNS, NOT_SHOWN
from randcond.launch.config.paths import eval_folder
from randcond.launch.config.protocols import protocol_of
from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError
from randcond.launch.install.extras import need
from randcond.launch.runtime.files import read_record
from randcond.model_zoo.checkpoints.hub import is_hub_id


def check_evaluation(config: Config, missing: list[str] | None = None) -> None:
    """Checks packages, captions, metrics, settings, statistics and weights; raises UserError naming what is wrong.

    `missing`: a list that collects the messages about missing files, instead of an error. Checks that need a missing
    file are skipped.
    """
    need("eval", "the evaluation")
    metrics = find_metrics(config.eval.metrics)
    check_settings(config, "eval")
    size = protocol_of(config.eval).size or config.eval.resolution or IMAGE_SIZE
    if "digits" in metrics and size != IMAGE_SIZE:
        raise UserError(
            f"eval.metrics: digits needs images of {IMAGE_SIZE} pixels; eval.protocol={config.eval.protocol} and "
            f"eval.resolution give {size}; set eval.protocol=native, or use another metric"
        )
    prompts = None
    with collecting_missing(missing):
        prompts = choose_prompts(config)
        _check_prompts(config, prompts, metrics)
    for name, metric in metrics.items():
        if metric.best not in COLUMNS.keys() | NOT_SHOWN:
            raise UserError(
                f"eval.metrics: {name}: reports have no column for its score {metric.best}; add one to COLUMNS in "
                f"eval/tables/table.py, or its name to NOT_SHOWN"
            )
    comparing = [name for name, metric in metrics.items() if metric.compares]
    if comparing and config.eval.statistics is None:
        raise UserError(
            f"eval.statistics: is missing, but eval.metrics has {', '.join(comparing)}: make statistics of real images "
            f"with `randcond eval stats`"
        )
    for metric in metrics.values():
        for split in (prompts.splits if prompts else [ALL]) if metric.compares else ():
            with collecting_missing(missing):
                statistics = find_statistics(str(config.eval.statistics), split, str(metric.compares))
                if metric.samples:
                    find_features(statistics)
    if any("inception" in metric.needs.values() for metric in metrics.values()):
        with collecting_missing(missing):
            _check_inception(config.eval.inception)
    check_weights(needed_extractors(metrics), config.eval)
    if config.eval.compbench.lists:
        with collecting_missing(missing):
            _check_lists(Path(config.eval.compbench.lists), config.eval.compbench.categories)
    for key, number in (
        ("compbench.images", config.eval.compbench.images),
        ("geneval.images", config.eval.geneval.images),
        ("geneval2.size", config.eval.geneval2.size),
    ):
        if number is not None and number < 1:
            raise UserError(f"eval.{key}: is {number}, expected at least 1")
    if config.eval.geneval.prompts:
        with collecting_missing(missing):
            geneval_items(config.eval)
        check_geneval_networks(config.eval.geneval.detector, config.eval.geneval.clip)
    if config.eval.geneval2.prompts:
        with collecting_missing(missing):
            geneval2_items(config.eval)
        check_judge(config.eval.geneval2.judge)
    with collecting_missing(missing):
        grid_prompts(config)


def check_made(config: Config) -> None:
    """Raises UserError naming every evaluation that is there and was made without a network that a metric needs."""
    needed, lacking = needed_extractors(find_metrics(config.eval.metrics)), []
    for name in config.eval.of:
        folder = Path(config.paths.reference) if name == "teacher" else eval_folder(config)
        if (folder / "plan.json").is_file():
            added = needed - read_record(folder / "plan.json", "extractors")["extractors"].keys()
            lacking += [f"the evaluation at {folder} was made without {', '.join(sorted(added))}"] if added else []
    if lacking:
        raise UserError(
            f"eval.metrics: {'; '.join(lacking)}: to add a metric that needs it, move what is named aside and evaluate "
            f"again, which draws the images anew"
        )


def to_download(config: Config) -> list[str]:
    """Returns the hub ids of scoring networks that are not on this machine yet. Asks no server."""
    ev = config.eval
    names = needed_extractors(find_metrics(ev.metrics))
    sources = {getattr(ev, key): files for name in names for key, files in EXTRACTORS[name].weights.items()}
    sources |= {ev.geneval.detector: TRANSFORMERS_FILES, ev.geneval.clip: CLIP_FILES} if ev.geneval.prompts else {}
    sources |= {ev.geneval2.judge: ("config.json",)} if ev.geneval2.prompts else {}
    found = []
    for source, files in sources.items():
        name, _, revision = source.partition("@")
        if is_hub_id(name) and not isinstance(try_to_load_from_cache(name, files[-1], revision=revision or None), str):
            found.append(source)
    return sorted(found)


def _check_prompts(config: Config, prompts: Prompts, metrics: dict[str, Metric]) -> None:
    if "digits" in metrics:
        for caption in prompts.captions:
            read_label(caption)  # raises UserError for a caption that the digits world does not know
    splits = dict(prompts.splits)
    if config.train.eval_every and config.train.eval_size is not None:
        fewer = first_prompts(prompts, config.train.eval_size).splits
        splits |= {f"{split} (train.eval_size)": ids for split, ids in fewer.items()}
    for name, metric in metrics.items():
        for split, ids in splits.items():
            if len(ids) < metric.least:
                raise UserError(
                    f"eval.metrics: {name} needs at least {metric.least} images, {split} has {len(ids)}: draw more "
                    f"images, or remove the metric"
                )


def _check_inception(path: str) -> None:
    if not Path(path).is_file():
        raise MissingInput(f"eval.inception: no weights at {path}{missing_input(path)}")


def _check_lists(folder: Path, categories: list[str]) -> None:
    for category in categories:
        prompts = read_prompts(folder, category)
        if category == "complex":
            read_complex_kinds(folder, prompts)
