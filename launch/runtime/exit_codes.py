"""The exit codes of every command, which error gives which, and how an error is reported."""

import contextlib
import errno
import os

from randcond.launch.errors import UserError
from randcond.launch.runtime.files import full_disk
from randcond.launch.runtime.logs import log

FAULT = 1  # a bug, or a fault of the machine: a traceback says where
USER_ERROR = 2  # the user's mistake: the same command would end the same way
LOST_RANK = 69  # a rank died, hangs or is out of reach, or a server is: the same command goes on
PREEMPTED = 75  # preempted, everything is saved: the same command goes on
INTERRUPTED = 130  # Ctrl-C
FIRST_EXIT = "RANDCOND_FIRST_END"  # environment: a file for the code of the first rank that does not end well
# A full disk, a path that is missing or can't be written: waiting does not help.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_LASTING = _FULL | {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR}


def exit_code(error: BaseException) -> int:
    """The code that a process ends with on an error."""
    if isinstance(error, UserError):
        return USER_ERROR
    if isinstance(error, ConnectionError | TimeoutError):
        return LOST_RANK
    if isinstance(error, OSError) and error.errno is not None:
        return USER_ERROR if error.errno in _LASTING else LOST_RANK
    if full_disk(error):  # of a library that passes on the system's words alone
        return USER_ERROR
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else FAULT


def report_error(error: BaseException) -> int:
    """Reports an error once, however many callers see it pass; returns the code to end with.

    The user's mistake is one line. So is an error of the disk or a server, whose traceback goes to the rank's log.
    Anything else shows its traceback on the console too, and so does every error where RANDCOND_TRACEBACK is set.
    """
    code = exit_code(error)
    if getattr(error, "reported", False):
        return code
    with contextlib.suppress(AttributeError):  # an exception with slots
        error.reported = True  # type: ignore[attr-defined]
    if code == FAULT or os.environ.get("RANDCOND_TRACEBACK"):
        log.critical(f"error: {type(error).__name__}: {error}", exc_info=error)
    elif isinstance(error, UserError):
        log.error(f"error: {error}")
    elif code != INTERRUPTED:
        log.error(f"error: {error}", exc_info=error)
    return code


def record_first_exit(code: int) -> None:
    """Writes down the code of the job's first rank that does not end well, where the job's script asks for it.

    srun then asks the other ranks to end, and reports the largest code of all, which would hide the first one.
    """
    path = os.environ.get(FIRST_EXIT)
    if path and code:
        with contextlib.suppress(OSError), open(path, "x") as file:  # there already: another rank was the first
            file.write(f"{code}\n")
