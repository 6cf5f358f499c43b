"""An artefact on disk: its resolved configuration, and whether it matches what an experiment asks for."""

import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from randcond.launch.config.experiments import to_yaml
from randcond.launch.config.identity import differences
from randcond.launch.config.sections import Config
from randcond.launch.config.strict_yaml import load_yaml
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import naming_full_disk
from randcond.launch.urls import shown_settings


def write_config(folder: Path, config: Config, keep: bool = False) -> None:
    """Writes the resolved configuration beside an artefact. Only the first rank writes.

    `keep`: leave an existing file as it is, and do nothing if the folder can't be written. A file of an older version
    that holds secrets of a URL is written again without them.
    """
    path = folder / "config.yaml"
    if keep and (not os.access(folder, os.W_OK) or (path.is_file() and not _holds_secrets(path))):
        return
    if os.environ.get("RANK", "0") == "0":
        # A random name: jobs in containers may have the same process number.
        temporary = folder / f".config.{secrets.token_hex(8)}.part"
        try:
            with naming_full_disk(path):
                temporary.write_text(to_yaml(config), encoding="utf-8")
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _holds_secrets(path: Path) -> bool:
    try:
        stored = load_yaml(path.read_text(encoding="utf-8", errors="replace"))
    except UserError:  # no configuration
        return True
    return bool(shown_settings(stored) != stored)


def check_matches(
    stored: Mapping[str, Any],
    expected: Mapping[str, Any],
    what: str,
    remedy: str,
    absent: Mapping[str, Any] | None = None,
    shown: Callable[[str], str] = str,
) -> None:
    """Raises UserError that names every setting in which an artefact differs from what the experiment asks for.

    stored, expected: identities, compared leaf by leaf (see `differences`)
    what: the artefact, as the message calls it
    remedy: what to do
    absent: dotted key -> the value that its absence stands for
    shown: returns a key as experiments call it
    """
    if wrong := [str(each._replace(key=shown(each.key))) for each in differences(stored, expected, absent)]:
        raise UserError(f"{what} does not match this experiment: {'; '.join(wrong)}. {remedy}")
