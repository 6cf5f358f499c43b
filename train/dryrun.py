"""Resolves and checks experiments and runs none: `python -m randcond.train.dryrun [EXPERIMENT ...] [key=value ...]`.

Without a name it takes every experiment and table that ships (`make dryrun`). What an experiment reads and is not there
yet is an error where it is named, because it is about to run; of all that ship it is only said.
"""

import os
import sys
from collections import Counter

from randcond.launch.config.experiments import experiment_names, load_config, table_names
from randcond.launch.config.sections import Config
from randcond.launch.config.tables import load_table
from randcond.launch.errors import UserError
from randcond.launch.runtime.processes import exit_when_preempted
from randcond.train.checks import check_all


def main(words: list[str]) -> None:
    """Prints a line per experiment; exits 2 when one does not resolve."""
    overrides = [word for word in words if "=" in word]
    names = [word for word in words if "=" not in word]
    wrong, lacking = 0, Counter[str]()
    for name in names or experiment_names():
        try:
            config = load_config(name, overrides)
            missing: list[str] = []
            check_all(config, config.engine.processes, missing)
            print(f"{name}: {summary(config)}" + ("; its inputs are not here yet" if missing else ""))
            for what in dict.fromkeys(missing) if names else ():
                if what not in lacking:  # all of it at once, each once
                    print(f"error: {name}: {what}", file=sys.stderr)
                    wrong += 1
            lacking.update(missing)
        except (UserError, OSError) as error:
            if os.environ.get("RANDCOND_TRACEBACK"):
                raise
            wrong += 1
            print(f"error: {name}: {error}", file=sys.stderr)
    if not names:
        for table in table_names():
            if unknown := set(load_table(table).experiments) - set(experiment_names()):
                wrong += 1
                print(f"error: table {table}: unknown experiments {sorted(unknown)}", file=sys.stderr)
        if lacking:
            print("\nnot here yet, and of how many experiments:")
            for what, count in lacking.most_common():
                print(f"  {count:3}  {what}")
        print(f"\n{len(experiment_names())} experiments and {len(table_names())} tables resolved, {wrong} wrong")
    sys.exit(2 if wrong else 0)


def summary(config: Config) -> str:
    """An experiment in a line."""
    if not config.trains:
        return f"{config.teacher.path}, evaluated as it is by protocol {config.eval.protocol}"
    pool = config.pool
    extra = "all" if pool.size is None else f"{pool.size:,}"
    beside = f" and those of {', '.join(pool.also)}" if pool.also else ""
    said = f"{config.student.rule}, {config.student.init} init, p(t) {config.conditioning.p}"
    said += f", {extra} extra texts{beside}" if config.conditioning.p != "none" else ""
    return f"{said}, {config.cache.used or config.cache.size:,} latents, {config.train.steps:,} steps"


if __name__ == "__main__":
    exit_when_preempted()
    main(sys.argv[1:])
