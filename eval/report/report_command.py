"""`randcond report NAME ... [key=value ...]`: experiments or a table beside the paper's figures."""

from randcond.eval.report.report import load_report, write_report
from randcond.launch.errors import UserError


def report(*names: str, out: str = "") -> None:
    """Collects evaluated experiments into one table beside the paper's figures: Markdown, HTML, JSON, a contact sheet.

    names        a table, or experiments (names or YAML files), and overrides they were run with (section.key=value)
    --out FOLDER where it goes (default: the table's own folder, or the one experiment's)

    examples     randcond report demo
                 randcond report demo-with demo-without --out runs/compared
    """
    words = [name for name in names if "=" not in name]
    if not words:
        raise UserError("name a table or experiments, see `randcond --help`")
    write_report(load_report(words, [name for name in names if "=" in name], out))
