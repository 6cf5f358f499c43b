"""Identities: which settings an artefact depends on, and how stored identities are compared.

Each key in sections.py declares which artefacts depend on it. A setting that is missing in a stored identity counts as
its key's default. So a new key does not invalidate existing artefacts as long as it has its default.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_type_hints

T = TypeVar("T")


class Decides(NamedTuple):
    """Declares which artefacts depend on a key. If there are none, the key changes no artefact's content."""

    kinds: tuple[str, ...] = ()
    absent: Any = dataclasses.MISSING  # value of a stored identity without the key; if not given, the key's default


# How sections.py declares a key. `OfRun[float]` is a float that decides a run; keys of several kinds use Annotated.
OfRun = Annotated[T, Decides(("run",))]
OfCache = Annotated[T, Decides(("cache",))]
OfDrawnCache = Annotated[T, Decides(("drawn cache",))]  # latents that the teacher draws
OfShards = Annotated[T, Decides(("shards",))]  # how a cache is split and computed; training accepts any
OfPool = Annotated[T, Decides(("pool",))]
OfEvaluation = Annotated[T, Decides(("evaluation",))]
OfLoss = Annotated[T, Decides(("run",), absent=0.0)]  # a loss with weight 0 is in no identity
ByContent = Annotated[T, Decides(("content",))]  # a path: the identity has a hash of its content
Free = Annotated[T, Decides()]


def declared(section: type) -> dict[str, Decides | None]:
    """Returns what each key of a section decides: None for a key without a declaration and for a nested section."""
    hints = get_type_hints(section, include_extras=True)
    found: dict[str, Decides | None] = {}
    for field in dataclasses.fields(section):
        marks = [mark for mark in get_args(hints[field.name])[1:] if isinstance(mark, Decides)]
        found[field.name] = marks[0] if marks else None
    return found


def identity_of(section: Any, *kinds: str) -> dict[str, Any]:
    """Returns the settings of a section and its nested sections that artefacts of these kinds depend on."""
    settings: dict[str, Any] = {}
    for name, decides in declared(type(section)).items():
        value = getattr(section, name)
        if decides is None and dataclasses.is_dataclass(value):
            if inner := identity_of(value, *kinds):
                settings[name] = inner
        elif decides and set(kinds) & set(decides.kinds) and value != decides.absent:
            settings[name] = value
    return settings


def absent_settings(section: type, *kinds: str, above: str = "") -> dict[str, Any]:
    """Returns dotted key -> the value that counts if a stored identity has no such key."""
    settings: dict[str, Any] = {}
    hints = get_type_hints(section)
    marks = declared(section)
    for field in dataclasses.fields(section):
        decides, key = marks[field.name], f"{above}{field.name}"
        if decides is None and dataclasses.is_dataclass(hints[field.name]):
            settings |= absent_settings(hints[field.name], *kinds, above=f"{key}.")
        elif decides and set(kinds) & set(decides.kinds):
            if decides.absent is not dataclasses.MISSING:
                settings[key] = decides.absent
            elif field.default is not dataclasses.MISSING:
                settings[key] = field.default
            else:
                factory: Any = field.default_factory
                if factory is not dataclasses.MISSING:
                    settings[key] = factory()
    return settings


class Difference(NamedTuple):
    """A setting in which a stored artefact differs from what is expected."""

    key: str
    stored: Any
    expected: Any

    def __str__(self) -> str:
        """Returns e.g. `guidance is 7.5 there, 3 here`. For two long lists: the first place where they differ."""
        one, other = self.stored, self.expected
        if isinstance(one, list) and isinstance(other, list) and max(len(one), len(other)) > 8:
            place = next((i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
            if place is None:
                return f"{self.key} has {len(one)} entries there, {len(other)} here"
            first = Difference(f"{self.key}[{place}]", one[place], other[place])
            return f"{first} (of {len(one)} entries there, {len(other)} here)"
        return f"{self.key} is {one!r} there, {other!r} here"


def differences(
    stored: Mapping[str, Any], expected: Mapping[str, Any], absent: Mapping[str, Any] | None = None
) -> list[Difference]:
    """Returns every leaf in which a stored identity differs from the expected one.

    `absent`: dotted key -> the value that counts for a missing leaf (default None). Top-level keys that only `stored`
    has are ignored, because an artefact stores more than its identity. Nested ones count.
    """
    absent = absent or {}
    ours, theirs = _leaves(expected), _leaves({key: value for key, value in stored.items() if key in expected})
    found = []
    for key in [*ours, *(key for key in theirs if key not in ours)]:
        pair = (theirs.get(key, absent.get(key)), ours.get(key, absent.get(key)))
        if pair[0] != pair[1]:
            found.append(Difference(key, *pair))
    return found


def _leaves(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Returns nested settings by their dotted keys, without empty mappings.

    `p_args` is one leaf, even if it is empty, because its keys are free.
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value and key != "p_args":
            found |= _leaves(value, f"{above}{key}.")
        elif not (isinstance(value, Mapping) and not value and key != "p_args"):
            found[above + key] = value
    return found
