"""Environments as users have them: a wheel of this folder, and the packages that it requires, and no others.

The packages are links to those that are installed here, so that an environment takes seconds and no space.
"""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser
from importlib.metadata import PackagePath, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


def build_wheel(out: Path) -> Path:
    """Builds the wheel of this folder's files, without those that git ignores, into `out`. Returns its path."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    source = out / "source"
    for name in names:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(source))
    (wheel,) = out.glob("*.whl")
    return wheel


def required(wheel: Path, extra: str = "") -> set[str]:
    """Returns the names of the packages that pip would install for a wheel and one of its extras.

    The versions are those that are installed here.
    """
    with zipfile.ZipFile(wheel) as file:
        (name,) = [each for each in file.namelist() if each.endswith(".dist-info/METADATA")]
        lines = Parser().parsestr(file.read(name).decode()).get_all("Requires-Dist") or []
    found: dict[str, set[str]] = {"randcond": {extra}}  # package -> its extras
    todo = [("randcond", extra)]
    while todo:
        package, of = todo.pop()
        texts = lines if package == "randcond" else distribution(package).requires or []
        for each in map(Requirement, texts):
            if each.marker and not each.marker.evaluate({"extra": of}):
                continue
            for wanted in each.extras or {""}:
                if wanted not in found.setdefault(each.name.lower().replace("_", "-"), set()):
                    found[each.name.lower().replace("_", "-")].add(wanted)
                    todo.append((each.name.lower().replace("_", "-"), wanted))
    return set(found) - {"randcond"}


def environment(folder: Path, wheel: Path, extra: str = "") -> Path:
    """Makes an environment with a wheel, installed by pip, and the packages that it and one of its extras require.

    Returns the folder of its programs.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    programs = folder / "bin"
    here = Path(sysconfig.get_path("purelib"))
    there = folder / here.relative_to(sys.prefix)
    for name in required(wheel, extra):
        files = distribution(name).files or []
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            if not (there / top).exists():
                (there / top).symlink_to(here / top)
        for file in files:
            if file.parent.name == "bin" and file.parts[0] == "..":
                _copy_program(file, programs)
    _pip("--python", str(programs / "python"), "install", "--no-deps", "--no-index", str(wheel))
    return programs


def _copy_program(file: PackagePath, programs: Path) -> None:
    """Copies a program. A script gets the environment's Python in its first line."""
    content = Path(str(file.locate())).read_bytes()
    first, _, rest = content.partition(b"\n")
    if first.startswith(b"#!") and b"python" in first:
        content = b"#!" + bytes(programs / "python") + b"\n" + rest
    (programs / file.name).write_bytes(content)
    (programs / file.name).chmod(0o755)


def _pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
