"""Our exceptions: what separates the user's mistakes from bugs and faults."""

from randcond.launch.urls import hide_secrets


class UserError(Exception):
    """A mistake of the user's: bad input, a wrong key, a missing file. The message names it and the way out.

    A command ends on it with one line and exit code 2. Any other exception, a library's ValueError included, is a bug
    or a fault: it leaves a traceback. The message never holds the secrets of a URL: it is printed, and some are stored.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(hide_secrets(str(message)))
