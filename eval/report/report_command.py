"""`randcond report NAME ... [key=value ...]`: compares experiments, or the rows of a table, with the paper."""

from randcond.launch.errors import UserError
from randcond.launch.install.extras import need


def report(*names: str, out: str = "") -> None:
    """Collects scores in one table, next to the paper's figures: Markdown, HTML, JSON, a contact sheet.

    names        a table, or experiments (names or YAML files), and the overrides they were run with (section.key=value)
    --out FOLDER where to write the report (default: the table's folder, or the folder of the one experiment)

    examples     randcond report demo
                 randcond report demo-with demo-without --out runs/compared
    """
    words = [name for name in names if "=" not in name]
    if not words:
        raise UserError("no name given: name a table or experiments, see `randcond --help`")
    need("eval", "the report")
    from randcond.eval.report.report import load_report, write_report  # imports matplotlib

    write_report(load_report(words, [name for name in names if "=" in name], out))
