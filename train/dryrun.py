"""`make dryrun`: resolves and checks every experiment and table that ships, and runs none."""

import sys

from randcond.launch.config import experiment_names, load_config, load_table, table_names
from randcond.train.check import check


def main() -> None:
    """Prints a line per experiment; exits 1 when one does not resolve."""
    wrong = 0
    for name in experiment_names():
        try:
            config = load_config(name)
            check(config)
            print(f"{name}: {config.student.rule}, p(t) {config.conditioning.p}, {config.train.steps} steps")
        except (ValueError, FileNotFoundError) as error:
            wrong += 1
            print(f"{name}: {error}", file=sys.stderr)
    for name in table_names():
        unknown = set(load_table(name).arms.values()) - set(experiment_names())
        if unknown:
            wrong += 1
            print(f"table {name}: unknown experiments {sorted(unknown)}", file=sys.stderr)
    print(f"{len(experiment_names()) - wrong} experiments resolved, {len(table_names())} tables, {wrong} wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
