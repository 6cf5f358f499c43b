"""What an artefact on disk was made of, beside it and compared with what is asked for."""

import os
import secrets
from pathlib import Path
from typing import Any

from randcond.launch.config.experiments import to_yaml
from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError


def write_config(folder: Path, config: Config, keep: bool = False) -> None:
    """Writes the resolved configuration beside an artefact; the first rank does it, for all.

    `keep`: what is there stays, of whoever made the artefact; and a folder that can't be written stays without.
    """
    if keep and ((folder / "config.yaml").is_file() or not os.access(folder, os.W_OK)):
        return
    if os.environ.get("RANK", "0") == "0":
        aside = folder / f".config.{secrets.token_hex(8)}.part"  # several jobs, in containers of one process number
        aside.write_text(to_yaml(config))
        os.replace(aside, folder / "config.yaml")


def check_matches(found: dict[str, Any], wanted: dict[str, Any], what: str, remedy: str) -> None:
    """Raises UserError naming every key in which an artefact on disk differs from what the experiment asks for."""
    wrong = [_differs(key, found.get(key), value) for key, value in wanted.items() if found.get(key) != value]
    if wrong:
        raise UserError(f"{what} was made otherwise: {'; '.join(wrong)}. {remedy}")


def _differs(key: str, found: Any, wanted: Any) -> str:
    """Where two values differ; of two long lists the first place."""
    if isinstance(found, list) and isinstance(wanted, list) and max(len(found), len(wanted)) > 8:
        at = next((i for i, pair in enumerate(zip(found, wanted, strict=False)) if pair[0] != pair[1]), None)
        if at is None:
            return f"{key} are {len(found)}, wanted {len(wanted)}"
        return f"{_differs(f'{key}[{at}]', found[at], wanted[at])} ({len(found)} of them, wanted {len(wanted)})"
    return f"{key} is {found!r}, wanted {wanted!r}"
