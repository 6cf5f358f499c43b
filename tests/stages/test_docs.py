"""The documentation's site is built without a warning: links and anchors are valid, every key and command is there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from randcond.launch.cli import GROUPS, TOOLS
from randcond.launch.command_stubs import commands_of
from randcond.launch.keys import all_keys
from tests.stages.test_readme import PACKAGES

ROOT = Path(__file__).parents[2]


def built(folder: Path) -> subprocess.CompletedProcess[str]:
    """Builds the site into a folder."""
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


@pytest.mark.heavy
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    shutil.rmtree(ROOT / "build" / "docs", ignore_errors=True)  # as in a fresh clone
    done = built(tmp_path)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr[-2000:]
    keys = (tmp_path / "reference/keys/index.html").read_text()
    headings = re.findall(r'<h2 id="[^"]*">([^<]*)<', keys)
    assert len(headings) == len(set(headings)), "a section is split"
    for key in all_keys():
        section, _, name = key.name.rpartition(".")
        assert f"<code>{name}</code>" in keys and (section or "Top level") in headings, key.name
    commands = (tmp_path / "reference/commands/index.html").read_text()
    for words in [["run"], *([name] for name in TOOLS if name != "rank"), ["students", "rank"]]:
        assert f"randcond {' '.join(words)}<" in commands, words
    for group, module in GROUPS.items():
        assert all(f"randcond {group} {name}<" in commands for name in commands_of(module)), group
    rooms = [path for name in PACKAGES for path in (ROOT / name).rglob("__init__.py")]
    assert len(list((tmp_path / "reference/api").glob("randcond.*"))) == len(rooms)
    score = (tmp_path / "reference/api/randcond.eval.scores/index.html").read_text()
    assert "Returns the interval of each score that has influence values" in score
    assert (tmp_path / "results/demo/report/index.html").is_file()
    sheet = "results/mini-fig3/1-regenerated.png"
    assert f'src="../{sheet}"' in (tmp_path / "how-it-works/index.html").read_text() and (tmp_path / sheet).is_file()
