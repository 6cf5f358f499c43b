"""Lists experiments and tables with what they are about."""

from randcond.launch.config.experiments import experiment_names, find_experiment, table_names
from randcond.launch.config.tables import load_table
from randcond.launch.errors import UserError


def list_(word: str = "") -> None:
    """Lists experiments and tables, one a line; with a word, those whose name or description has it.

    examples
      randcond list
      randcond list table1
      randcond list koala
    """
    rows = [(name, load_table(name).title) for name in table_names()]
    rows += [(name, first_comment(name)) for name in experiment_names()]
    found = [row for row in rows if word.lower() in " ".join(row).lower()]
    if not found:
        raise UserError(f"no experiment or table has {word!r} in its name or description; `randcond list` lists all")
    width = max(len(name) for name, _ in found)
    print("\n".join(f"{name:{width}}  {about}".rstrip() for name, about in found))


def first_comment(name: str) -> str:
    """Returns the first line of an experiment's YAML file, if it is a comment."""
    line = find_experiment(name).read_text(encoding="utf-8").splitlines()[0]
    return line.removeprefix("# ") if line.startswith("#") else ""
