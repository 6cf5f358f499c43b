"""`python -m randcond.eval.report EXPERIMENT|TABLE`, which `randcond run report` starts."""

import os
import sys

from randcond.eval.report.report_command import report
from randcond.launch.machine.launcher_ranks import forget_ranks
from randcond.launch.runtime.exit_codes import report_error
from randcond.launch.runtime.logs import start_console
from randcond.launch.runtime.processes import exit_when_preempted, take_interrupts


def main(argv: list[str] | None = None) -> None:
    """Writes the report of a table or of experiments. A UserError is printed as one line, with exit code 2."""
    words = [word for word in (sys.argv[1:] if argv is None else argv) if not word.startswith("--local_rank")]
    if not words or words[0].startswith("-"):
        print("usage: python -m randcond.eval.report EXPERIMENT|TABLE [section.key=value ...]")
        return
    start_console()
    forget_ranks(os.environ)  # a report is one process, also in the shell of a job with several ranks
    try:
        report(*words)
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(report_error(error))


if __name__ == "__main__":
    exit_when_preempted()
    take_interrupts()
    main()
