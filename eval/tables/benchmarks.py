"""The benchmarks of a row that have their own prompts: T2I-CompBench, GenEval and GenEval 2.

In: the folder of an evaluation. Out: their scores, checked against the configuration.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from randcond.eval.compbench.run import compbench_prompts
from randcond.eval.geneval.run import FOLDER as GENEVAL
from randcond.eval.geneval.run import geneval_prompts
from randcond.eval.geneval2.run import FOLDER as GENEVAL2
from randcond.eval.geneval2.run import geneval2_prompts
from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError
from randcond.launch.runtime.artefacts import check_matches
from randcond.launch.runtime.files import read_record

# Settings that a benchmark's images must share with the row's other images.
DRAWN_ALIKE = ("network", "weights", "sampler", "steps", "guidance", "resolution", "seed", "batch", "dtype")


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark adds to a row."""

    name: str  # its key in the protocol
    scores: dict[str, Any]
    protocol: dict[str, Any]
    intervals: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def benchmarks(
    config: Config, folder: Path, protocol: dict[str, Any], who: str, evaluate: str, remedy: str
) -> Iterator[Benchmark]:
    """Yields the benchmarks that an experiment asks for.

    folder: of the evaluation; protocol: of its scores; who: the row, for errors; evaluate: the command that makes it.
    Raises UserError if one is not evaluated, or was evaluated with other settings than the configuration has now.
    """
    same = {key: protocol[key] for key in DRAWN_ALIKE}
    if config.eval.compbench.lists:
        bench = _read(folder / "compbench" / "scores.json", evaluate, "protocol", "scores", "scorers")
        for category in config.eval.compbench.categories:
            expected = {**same, "prompts_sha256": compbench_prompts(config.eval, category).sha256}
            check_matches(bench["protocol"].get(category, {}), expected, f"CompBench ({category}) of {who}", remedy)
        facts = {
            key: {category: category_facts[key] for category, category_facts in bench["protocol"].items()}
            for key in ("images", "prompts_sha256")
        }
        yield Benchmark("compbench", bench["scores"], {**bench["scorers"], **facts})
    if config.eval.geneval.prompts:
        bench = _read(folder / GENEVAL / "scores.json", evaluate, "protocol", "scores", "intervals", "scorers")
        expected = {**same, "prompts_sha256": geneval_prompts(config.eval).sha256}
        check_matches(bench["protocol"], expected, f"GenEval of {who}", remedy)
        facts = {key: bench["protocol"][key] for key in ("images", "prompts_sha256")}
        yield Benchmark(GENEVAL, bench["scores"], {**bench["scorers"], **facts}, bench["intervals"])
    if config.eval.geneval2.prompts:
        bench = _read(folder / GENEVAL2 / "scores.json", evaluate, "protocol", "scores", "intervals", "notes")
        expected = {**same, "prompts_sha256": geneval2_prompts(config.eval).sha256}
        check_matches(bench["protocol"], expected, f"GenEval 2 of {who}", remedy)
        facts = {key: bench["protocol"][key] for key in ("images", "prompts_sha256", "extractors")}
        notes = [f"GenEval 2: {note}" for note in bench["notes"]]
        yield Benchmark(GENEVAL2, bench["scores"], facts, bench["intervals"], notes)


def _read(path: Path, evaluate: str, *keys: str) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"no scores at {path}: run {evaluate} first")
    return read_record(path, *keys)
