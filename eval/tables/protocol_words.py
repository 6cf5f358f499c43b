"""Writes the protocol of an evaluation, everything that its scores depend on, as one line of text."""

from collections.abc import Mapping
from typing import Any

LEFT_OUT = ("network", "weights")  # they differ from row to row


def protocol_in_words(protocol: Mapping[str, Any]) -> str:
    """Returns a protocol of scores.json as text, without what is not set.

    >>> protocol_in_words({"network": "1f", "steps": 25, "resolution": None, "splits": {"seen": 300, "unseen": 300}})
    'steps 25; splits seen 300, unseen 300'
    """
    shown = settings_in_words(protocol)
    return "; ".join(f"{key} {value}" for key, value in shown.items() if key not in LEFT_OUT)


def settings_in_words(protocol: Mapping[str, Any]) -> dict[str, str]:
    """Returns each setting of a protocol as text, without those that are not set."""
    return {key: _in_words(value) for key, value in protocol.items() if value not in (None, {})}


def _in_words(value: Any) -> str:
    """Returns a setting as text; of several, each name before its value."""
    return ", ".join(f"{name} {each}" for name, each in value.items()) if isinstance(value, dict) else str(value)
