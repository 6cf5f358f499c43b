"""Resolves and checks experiments without running them.

`python -m randcond.train.dryrun [NAME ...] [key=value ...]`. NAME: an experiment, or a table, of which each repetition
is checked. Without a name it checks every experiment and table of the package (`make dryrun`). A missing input is an
error for an experiment that is named, because it is about to run. When all experiments are checked, missing inputs are
only listed. With `--stage=NAME` it checks what this stage needs, before its ranks start. `--ranks=N`: on all hosts.
"""

import os
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from randcond.launch.config.experiments import experiment_names, table_names
from randcond.launch.config.paths import is_url, resolve_path
from randcond.launch.config.sections import Config
from randcond.launch.config.tables import Run, load_table, runs_of
from randcond.launch.device.forecast import forecast_all
from randcond.launch.errors import UserError
from randcond.launch.runtime.exit_codes import report_error
from randcond.launch.runtime.logs import log, start_console
from randcond.launch.runtime.processes import exit_when_preempted, take_interrupts
from randcond.launch.runtime.this_command import remember_experiment, stage_command
from randcond.launch.urls import show_url
from randcond.model_zoo.checkpoints.hub import check_reachable
from randcond.train.checks import check_all, check_grid, check_training
from randcond.train.state.kept_work import check_kept

ELSEWHERE = "elsewhere"  # a flag: the ranks run on other machines, which this one can't forecast


def main(arguments: list[str]) -> None:
    """Prints one line per experiment. Exits with 2 if an experiment or a table has an error, otherwise with 0."""
    flags = dict(word.removeprefix("--").partition("=")[::2] for word in arguments if word.startswith("--"))
    overrides = [word for word in arguments if "=" in word and not word.startswith("--")]
    names = [word for word in arguments if "=" not in word and not word.startswith("--")]
    checks = Checks(flags.get("stage", ""), int(flags.get("ranks", 0)), to_run=bool(names))
    for name in names or experiment_names():
        checks.check(name, overrides)
    _say_downloads(checks.passed)
    checks.errors += 0 if ELSEWHERE in flags else _forecast(checks.passed)
    if not names:
        checks.errors += _check_tables()
        if checks.missing:
            print("\nmissing inputs, each after the number of experiments that need it:")
            for text, count in checks.missing.most_common():
                print(f"  {count:3}  {text}")
        print(
            f"\n{len(experiment_names())} experiments and {len(table_names())} tables resolved, {checks.errors} errors"
        )
    sys.exit(2 if checks.errors else 0)


@dataclass
class Checks:
    """The checks of some experiments or tables, and what they found."""

    stage: str  # checks what this stage needs; "": what all of them need
    ranks: int  # on all hosts; 0: `engine.processes` of each experiment
    to_run: bool  # they are about to run, so a missing input is an error
    errors: int = 0
    missing: Counter[str] = field(default_factory=Counter)  # missing input -> experiments that need it
    passed: list[Config] = field(default_factory=list)  # of those to run

    def check(self, name: str, overrides: list[str]) -> None:
        """Checks an experiment, or each row of a table in each repetition. Prints a line per experiment."""
        try:
            remember_experiment(name, overrides)
            runs = runs_of(name, overrides)
        except (UserError, OSError) as error:
            self._fail(name, error)
            return
        for run in runs:
            if self.stage in ("", "eval") or run.config.trains:
                label = " ".join(filter(None, [run.experiment, run.config.replicate]))
                try:
                    self._check_run(run, label, first=run.config.replicate == runs[0].config.replicate)
                except (UserError, OSError) as error:
                    self._fail(label, error)

    def _check_run(self, run: Run, label: str, first: bool) -> None:
        """Checks a run. `first`: of the first repetition, whose line is shown for all."""
        remember_experiment(run.experiment, run.overrides)
        engine = run.config.engine
        config = replace(run.config, engine=replace(engine, processes=self.ranks or engine.processes))
        if self.stage:
            check_stage(self.stage, config, config.engine.processes)
            return
        missing: list[str] = []
        check_all(config, config.engine.processes, missing)
        if first:
            print(f"{run.experiment}: {summary(config)}" + ("; some inputs are missing" if missing else ""))
        for text in dict.fromkeys(missing) if self.to_run else ():
            if text not in self.missing:  # report each missing input once
                log.error(f"error: {label}: {text}")
                self.errors += 1
        self.missing.update(missing)
        if self.to_run:
            check_reachable(resolve_path(config.teacher.path))
            self.passed += [] if missing else [config]

    def _fail(self, label: str, error: Exception) -> None:
        if os.environ.get("RANDCOND_TRACEBACK"):
            raise error
        self.errors += 1
        log.error(f"error: {label}: {error}")


def _check_tables() -> int:
    """Returns the number of tables that name an experiment which does not exist; each is an error."""
    errors = 0
    for table in table_names():
        if unknown := set(load_table(table).experiments) - set(experiment_names()):
            errors += 1
            log.error(f"error: table {table}: unknown experiments {sorted(unknown)}")
    return errors


def _say_downloads(configs: list[Config]) -> None:
    """Prints the scoring networks that an evaluation will download."""
    from randcond.eval.checks import to_download

    if found := sorted({each for config in configs for each in to_download(config)}):
        print(f"the evaluation downloads: {', '.join(found)}")


def _forecast(configs: list[Config]) -> int:
    """Prints what the experiments take on this machine. Returns the number of errors: what does not fit."""
    if not configs:
        return 0
    text, faults = forecast_all(configs, configs[0].engine.processes)
    print(text)
    for fault in faults:
        log.error(f"error: {fault}")
    return len(faults)


def check_stage(stage: str, config: Config, ranks: int) -> None:
    """Checks an experiment before one of its stages starts on `ranks` ranks. Raises UserError naming key or artefact.

    A stage alone makes nothing that it needs. So what earlier stages make must be there.
    """
    if stage == "cache":
        from randcond.data.__main__ import check_cache

        check_cache(config)
        check_reachable(resolve_path(config.teacher.path))
    elif stage == "train":
        check_training(config, ranks)
        check_grid(config)
        _check_made(config)
        check_kept(config)
    elif stage == "eval":
        from randcond.eval.__main__ import check
        from randcond.eval.trained_runs import trained_student

        check(config)
        if config.trains and "student" in config.eval.of:
            trained_student(config, config.eval.weights)


def _check_made(config: Config) -> None:
    """Raises UserError if the cache or the pool of a training is not finished. Reads neither."""
    paths = config.paths
    if not is_url(paths.cache) and not (Path(paths.cache) / "manifest.json").is_file():
        raise UserError(f"no complete cache at {paths.cache}: create or finish it with {stage_command('cache')}")
    if not (Path(paths.pool) / "manifest.json").is_file():
        raise UserError(f"no caption pool at {paths.pool}: build it with {stage_command('pool')}")


def summary(config: Config) -> str:
    """Returns a one-line description of an experiment."""
    if not config.trains:
        return f"{config.teacher.path}, no training, evaluated with protocol {config.eval.protocol}"
    pool = config.pool
    start = f"from {config.student.earlier}" if config.student.earlier else f"{config.student.init} init"
    text = f"{config.student.rule}, {start}, p(t) {config.conditioning.p}"
    if config.conditioning.p != "none":
        text += f", {'all' if pool.size is None else f'{pool.size:,}'} extra texts"
        text += f" and all of {', '.join(map(show_url, pool.also))}" if pool.also else ""
    return f"{text}, {config.cache.used or config.cache.size:,} latents, {config.train.steps:,} steps"


if __name__ == "__main__":
    exit_when_preempted()
    take_interrupts()
    start_console()
    try:
        main(sys.argv[1:])
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(report_error(error))
