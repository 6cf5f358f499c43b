"""Extras: every package that is imported is required, and what only an extra brings is imported where it belongs."""

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from randcond.launch.errors import UserError
from randcond.launch.install import extras
from tests.support.environments import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ROOMS = {  # extra -> where it is imported
    "eval": ("eval", "data/digits"),
    "llm": ("data/texts",),
    "wandb": ("train/sinks",),
    "mlflow": ("train/sinks",),
}
OTHERS = {"s3": "fsspec", "xformers": "diffusers"}  # extra -> the library that imports it


def names(lines: list[str]) -> set[str]:
    return {Requirement(line).name.lower().replace("_", "-") for line in lines} - {"randcond"}


BASE = names(PROJECT["dependencies"])
EXTRAS = {extra: names(lines) for extra, lines in PROJECT["optional-dependencies"].items()}


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for package in ("launch", "model_zoo", "data", "train", "eval"):
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path, ast.parse(path.read_text())


def test_every_import_is_of_a_required_package() -> None:
    providers = packages_distributions()
    for path, tree in sources():
        where = path.relative_to(ROOT)
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        for module in {name.split(".")[0] for name in imported} & set(providers) - {"randcond"}:
            packages = {name.lower().replace("_", "-") for name in providers[module]}
            here = {extra for extra, rooms in ROOMS.items() if any(where.is_relative_to(room) for room in rooms)}
            allowed = BASE.union(*(EXTRAS[extra] for extra in here))
            assert packages & allowed, f"{where} imports {module}"


def test_every_extra_is_used() -> None:
    """`all` and `dev` are made of the others."""
    needed = {
        node.args[0].value
        for _, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "need" and isinstance(node.args[0], ast.Constant)
    }
    assert needed == {*ROOMS, "s3"}
    assert set(EXTRAS) == {*ROOMS, *OTHERS, "all", "dev"}
    (everything,) = PROJECT["optional-dependencies"]["all"]
    assert Requirement(everything).extras == {*ROOMS, "s3"}
    assert f"randcond[{'all'}]" in PROJECT["optional-dependencies"]["dev"]


def test_the_lock_file_fits_the_requirements() -> None:
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    versions = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    for line in chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()):
        each = Requirement(line)
        name = each.name.lower().replace("_", "-")
        assert name == "randcond" or each.specifier.contains(versions[name]), line


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/stages/test_wheel.py asks in an environment without the extras."""
    lines = ["torch>=2", "no-such-a>=1; extra == 'eval'", "no-such-b; extra == 'eval'", "numpy; extra == 'eval'"]
    monkeypatch.setattr(
        extras, "requires", lambda name: [*lines, "no-such-c; python_version < '3' and extra == 'eval'"]
    )
    with pytest.raises(
        UserError, match=r"^this needs no-such-a, no-such-b, not installed here: pip install 'randcond\[eval\]'$"
    ):
        extras.need("eval", "this")
    extras.need("llm", "this")
