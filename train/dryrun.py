"""Resolves and checks experiments and runs none: `python -m randcond.train.dryrun [EXPERIMENT ...] [key=value ...]`.

Without a name it takes every experiment and table that ships (`make dryrun`).
"""

import sys

from randcond.launch.config import experiment_names, load_config, load_table, table_names
from randcond.train.check import check_all


def main(words: list[str]) -> None:
    """Prints a line per experiment; exits 2 when one does not resolve."""
    overrides = [word for word in words if "=" in word]
    names = [word for word in words if "=" not in word]
    wrong = 0
    for name in names or experiment_names():
        try:
            config = load_config(name, overrides)
            check_all(config, config.engine.processes)
            said = f"{config.student.rule}, p(t) {config.conditioning.p}, {config.train.steps} steps"
            print(f"{name}: {said if config.trains else f'{config.teacher.path}, evaluated as it is'}")
        except (ValueError, FileNotFoundError) as error:
            wrong += 1
            print(f"error: {name}: {error}", file=sys.stderr)
    if not names:
        for table in table_names():
            if unknown := set(load_table(table).experiments) - set(experiment_names()):
                wrong += 1
                print(f"error: table {table}: unknown experiments {sorted(unknown)}", file=sys.stderr)
        print(f"{len(experiment_names())} experiments and {len(table_names())} tables resolved, {wrong} wrong")
    sys.exit(2 if wrong else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
