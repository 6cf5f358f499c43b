"""The exit codes of every command, and which error gives which."""

import contextlib
import errno
import os
import re

USER_ERROR = 2  # the user's: the same command would end the same way
LOST_RANK = 69  # a rank died, hangs or is out of reach: the same command goes on
PREEMPTED = 75  # asked to end, all is saved: the same command goes on
FIRST_EXIT = "RANDCOND_FIRST_END"  # environment: a file for the code of the first rank that does not end well
# A full disk, a folder that can't be written. Other errors of the system may pass: a stale file handle, a lost line.
_DISK_OR_PATH = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR}
_LASTING = {None, *_DISK_OR_PATH}


def exit_code(error: BaseException) -> int:
    """With which code a process ends on an error: whether the same command would end the same way."""
    if isinstance(error, OSError):
        number = error.errno
        if number is None and (said := re.findall(r"\[Errno (\d+)\]", str(error))):
            number = int(said[-1])  # out of a loader's process torch brings an error's text alone
        passing = isinstance(error, ConnectionError | TimeoutError) or number not in _LASTING
        return LOST_RANK if passing else USER_ERROR
    return USER_ERROR if isinstance(error, ValueError) else LOST_RANK


def record_first_exit(code: int) -> None:
    """Writes down the code of the job's first rank that does not end well, where the job's script asks for it.

    srun then asks the other ranks to end, and says the largest code of all: it would hide why the first one did.
    """
    path = os.environ.get(FIRST_EXIT)
    if path and code:
        with contextlib.suppress(OSError), open(path, "x") as file:  # there already: another rank was the first
            file.write(f"{code}\n")
