"""The user's name and folders, where the machine gives none: a user id without an entry, no HOME, a read-only home.

Libraries ask for the user's name and write caches below the home folder. In a container with a user id of its own, both
may fail, deep inside a library. Then the caches go into a temporary folder of this user.
"""

import os
import pwd
import stat
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

_NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")  # where Python's getpass looks for the user's name
# Variable of a cache -> its default folder. ~cache and ~config stand for XDG's folders.
_CACHES = {
    "HF_HOME": "~cache/huggingface",
    "TORCH_HOME": "~cache/torch",
    "TORCH_EXTENSIONS_DIR": "~cache/torch_extensions",
    "TRITON_HOME": "~/.triton",
    "MPLCONFIGDIR": "~config/matplotlib",
}
_READ = {"HF_HOME", "TORCH_HOME"}  # what they hold already is of use, even if nothing can be written there


def give_user_folders() -> str:
    """Sets the environment variables of what is missing. Returns one line about it, "" if nothing is.

    The processes that this one starts inherit them, so nothing is said twice.
    """
    known = _entry()
    if not known and not any(os.environ.get(name) for name in _NAMES):
        os.environ["USER"] = f"uid{os.getuid()}"
    note = ""
    if not os.environ.get("HOME"):
        home = known
        if not home:
            home = str(_own_folder() / "home")
            os.makedirs(home, exist_ok=True)
            note = f"note: HOME is not set, and user id {os.getuid()} has no entry in /etc/passwd: HOME is {home} now"
        os.environ["HOME"] = home
    moved = [name for name, default in _CACHES.items() if name not in os.environ and not _usable(name, default)]
    for name in moved:
        os.environ[name] = str(_own_folder() / name.lower())
    if moved:
        note = (
            f"note: {os.environ['HOME']} can't be written: caches go to {_own_folder()}; set {', '.join(moved)} to "
            f"choose other folders"
        )
    return note


def is_own_folder(value: str) -> bool:
    """Returns True for a path below the temporary folder of this user, which other hosts don't have."""
    return value.startswith(os.path.join(tempfile.gettempdir(), "randcond-"))


def _entry() -> str:
    """Returns the home folder of this user id by the system, "" if the system does not know the user id."""
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return ""


def _usable(name: str, default: str) -> bool:
    home = os.environ["HOME"]
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    folder = Path(default.replace("~cache", cache).replace("~config", config).replace("~/", f"{home}/"))
    # os.path, because pathlib raises PermissionError in the home of another user (su, or docker run --user).
    if name in _READ and os.path.isdir(folder) and os.access(folder, os.R_OK | os.X_OK):
        return True
    if name == "TORCH_EXTENSIONS_DIR" and os.access(sys.prefix, os.W_OK):  # train/engine puts them there
        return True
    existing = next(each for each in (folder, *folder.parents) if os.path.exists(each))
    return os.path.isdir(existing) and os.access(existing, os.W_OK | os.X_OK)


@cache
def _own_folder() -> Path:
    """Returns the temporary folder of this user. If somebody else made it, returns a new one."""
    folder = Path(tempfile.gettempdir()) / f"randcond-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    facts = folder.lstat()
    if stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid():
        return folder
    return Path(tempfile.mkdtemp(prefix="randcond-"))
