"""The settings that an evaluation depends on, and whether a stored evaluation has the same (see config/identity.py)."""

from collections.abc import Mapping
from typing import Any

from randcond.launch.config.identity import absent_settings, differences, identity_of
from randcond.launch.config.sections import NO_TEXT_FACTS, Eval

# Setting -> the value that counts if a stored evaluation lacks the setting.
ABSENT = absent_settings(Eval, "evaluation") | {"compile": None} | NO_TEXT_FACTS
# Settings that protocol_facts() stores itself, with their final values.
_RESOLVED = {"protocol", "sampler", "steps", "guidance", "resolution", "batch", "compile", "seed", "weights"}


def further_settings(ev: Eval) -> dict[str, Any]:
    """Returns the settings that an evaluation depends on, except those that protocol_facts() stores itself."""
    return {key: value for key, value in identity_of(ev, "evaluation").items() if key not in _RESOLVED}


def same_evaluation(stored: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    """Returns True if a stored plan or protocol matches the expected one."""
    return not differences(stored, expected, ABSENT)
