"""`python -m randcond.eval.report EXPERIMENT|TABLE`, which `randcond run report` starts."""

import sys

from randcond.eval.report.report_command import report
from randcond.launch.runtime.exit_codes import report_error
from randcond.launch.runtime.logs import start_console
from randcond.launch.runtime.processes import exit_when_preempted
from randcond.launch.runtime.ranks import rank


def main(argv: list[str] | None = None) -> None:
    """Writes the report of a table or of experiments. A UserError is printed as one line, with exit code 2."""
    words = [word for word in (sys.argv[1:] if argv is None else argv) if not word.startswith("--local_rank")]
    if not words or words[0].startswith("-"):
        print("usage: python -m randcond.eval.report EXPERIMENT|TABLE [section.key=value ...]")
        return
    if rank() != 0:
        return
    start_console()
    try:
        report(*words)
    except Exception as error:
        sys.exit(report_error(error))


if __name__ == "__main__":
    exit_when_preempted()
    main()
