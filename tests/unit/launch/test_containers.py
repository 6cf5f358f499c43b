"""Recipes for images: what they run and copy exists, and what git ignores stays out of them."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.support.environments import ROOT

FOLDER = ROOT / "launch/containers"
DOCKERFILE = re.sub(r"\\\n\s*", "", (FOLDER / "Dockerfile").read_text())  # one instruction a line
APPTAINER = (FOLDER / "apptainer.def").read_text()
SECTIONS = dict(re.findall(r"^%(\w+)\n(.*?)(?=^%|\Z)", APPTAINER, re.DOTALL | re.MULTILINE))


def instructions(name: str) -> list[str]:
    """Returns the arguments of every instruction of this name in the Dockerfile."""
    return re.findall(rf"^{name} (.*)$", DOCKERFILE, re.MULTILINE)


TARGETS = sorted(set(re.findall(r"\bmake ([a-z]+)(?=\s|$)", "\n".join([*instructions("RUN"), SECTIONS["post"]]))))


@pytest.mark.parametrize("target", TARGETS)
def test_the_make_targets_of_the_recipes_exist(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_recipes_run_the_setup() -> None:
    assert any("make setup" in line for line in instructions("RUN")) and "make setup" in SECTIONS["post"]


def test_what_is_copied_exists_and_is_enough_for_the_setup() -> None:
    copied = {source for line in instructions("COPY") for source in line.split()[:-1]}
    assert copied and all((ROOT / source).exists() for source in copied)
    first = [source for line in instructions("COPY")[:2] for source in line.split()[:-1]]
    assert set(first) == {"Makefile", "requirements.lock", "launch/install"}  # what `make packages` reads

    lines = [line.split() for line in SECTIONS["files"].splitlines() if line.strip()]
    assert all((ROOT / source).exists() and target == f"/opt/randcond/{source}" for source, target in lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {name.split(".")[1] for name in project["tool"]["setuptools"]["packages"]}
    files = {"pyproject.toml", "requirements.lock", "Makefile", project["project"]["readme"]}
    assert {source for source, _ in lines} == folders | files | set(project["project"]["license-files"])


def test_both_recipes_make_the_same_image() -> None:
    arguments = dict(line.split("=", 1) for line in instructions("ARG"))
    assert f"TAG={arguments['TAG']}" in SECTIONS["arguments"]
    assert f"From: {arguments['IMAGE']}:{{{{ TAG }}}}" in APPTAINER
    installed = re.findall(r"apt-get install --yes --no-install-recommends ([^&\n]*)", DOCKERFILE + APPTAINER)
    assert len(installed) == 2 and len({text.strip() for text in installed}) == 1
    environment = [line.strip().removeprefix("export ") for line in SECTIONS["environment"].splitlines()]
    assert instructions("ENV") == [line for line in environment if line]


def test_images_are_made_for_the_cuda_of_the_lock_file() -> None:
    (runtime,) = re.findall(r"^nvidia-cuda-runtime-cu12==(\d+\.\d+)", (ROOT / "requirements.lock").read_text(), re.M)
    assert f"TAG={runtime}." in DOCKERFILE


def test_what_git_ignores_is_not_copied() -> None:
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().split()}
    left_out = {line.removeprefix("**/").strip("/") for line in (ROOT / ".dockerignore").read_text().splitlines()}
    assert ignored | {".git"} <= left_out
    command = ["git", "ls-files", "--cached", "--ignored", "--exclude-from=.dockerignore"]
    files = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert all(Path(name).parts[0] == ".ci" for name in files), files  # nothing else of the clone is left out
