"""Help and mistakes in arguments come without importing torch, and say what the real functions would."""

import importlib
import inspect
import subprocess
import sys

import pytest

from randcond.launch.arguments import usage_of
from randcond.launch.cli import GROUPS, TOOLS
from randcond.launch.command_stubs import commands_of, docstring_of

EVERY = [
    *((module, name) for name, module in TOOLS.items()),
    *((module, name) for module in GROUPS.values() for name in commands_of(module)),
]


@pytest.mark.parametrize(("module", "name"), EVERY)
def test_a_stub_has_the_commands_signature_and_help(module: str, name: str) -> None:
    stub = commands_of(module)[name]
    command = getattr(importlib.import_module(module), stub.__name__)
    assert usage_of(stub, name) == usage_of(command, name)
    assert inspect.getdoc(stub) == inspect.getdoc(command)
    assert docstring_of(module) == (inspect.getdoc(importlib.import_module(module)) or "")


def test_help_and_mistakes_import_no_torch() -> None:
    words = [
        ["teacher"],
        ["students", "--help"],
        ["plan", "--gpuz", "1"],
        ["eval", "stats"],
        ["cache", "verify", "--help"],
    ]
    code = f"""
import sys
from randcond.launch.cli import main
for words in {words!r}:
    try:
        main(words)
    except SystemExit as end:
        assert end.code == 2, (words, end.code)
heavy = sorted({{'torch', 'diffusers', 'transformers', 'numpy', 'scipy'}} & set(sys.modules))
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "did you mean '--gpu'" in done.stderr and "is missing" in done.stderr
