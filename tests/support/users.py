"""Runs commands as a user whom the machine does not know: a user id without an entry in /etc/passwd."""

import subprocess

import pytest

USER = 54321
# In a namespace of its own the process has that id, and owns the files of the user who runs the tests.
AS_NOBODY = ["unshare", "--user", f"--map-user={USER}", f"--map-group={USER}"]


def _works() -> bool:
    try:
        return not subprocess.run([*AS_NOBODY, "true"], capture_output=True).returncode
    except FileNotFoundError:
        return False


needs_another_user = pytest.mark.skipif(not _works(), reason="needs unshare, and a kernel that permits user namespaces")
