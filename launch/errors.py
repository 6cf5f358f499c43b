"""Our exceptions: what separates the user's mistakes from bugs and faults."""


class UserError(Exception):
    """A mistake of the user's: bad input, a wrong key, a missing file. The message names it and the way out.

    A command ends on it with one line and exit code 2. Any other exception, a library's ValueError included, is a bug
    or a fault: it leaves a traceback.
    """
