"""Spaces in paths: of the working folder, of data, of the environment, and of the clone in which make runs."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from torch.utils import cpp_extension

from randcond.model_zoo.kernels.library_path import quote_library_path
from tests.support import warm
from tests.support.demo import TINY, randcond

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def spaced(world: Path, tmp_path: Path) -> Path:
    """A copy of the demo's folder in a path with spaces and a quote."""
    folder = tmp_path / "it's my work" / "two  words"
    shutil.copytree(world / "runs", folder / "runs of mine")
    return folder


def environment_with_spaces(folder: Path) -> Path:
    """Makes an environment in a path with spaces; returns its Python. It has the packages of this one."""
    prefix = folder / "my env"
    venv.create(prefix, with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(prefix)}))
    (packages / "others.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    (prefix / "bin/ninja").symlink_to(Path(sys.executable).parent / "ninja")  # another one would compile anew
    if (built := Path(sys.prefix) / "torch_extensions").is_dir():
        shutil.copytree(built, prefix / "torch_extensions")  # the operator of DeepSpeed takes a minute to compile
    return prefix / "bin" / "python"


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--launcher", "deepspeed")])
def test_a_training_in_a_path_with_spaces(flags: tuple[str, ...], spaced: Path) -> None:
    """With two ranks, captions with spaces in their names, and an environment in a path with spaces."""
    (spaced / "captions of mine").mkdir()
    (spaced / "captions of mine/a few.txt").write_text("a red three on green\na blue four on white\n")
    paths = ["paths.cache=runs of mine/demo/cache", "paths.pool=runs of mine/a pool", "paths.run=runs of mine/a run"]
    words = ["demo-with", *TINY, *paths, "pool.sources=[captions of mine/a few.txt]", "train.steps=2"]
    words += ["train.sample_every=0"]
    randcond(spaced, "run", "pool", *words)
    python = environment_with_spaces(spaced)
    command = [str(python), "-m", "randcond.launch.cli", "run", "train", *words, "--gpus", "2", *flags]
    clean = {name: value for name, value in os.environ.items() if name != "TORCH_EXTENSIONS_DIR"}
    done = subprocess.run(command, cwd=spaced, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (spaced / "runs of mine/a run/student/model_index.json").is_file()
    launched = [shlex.quote(str(python)), "-m deepspeed.launcher.runner"]
    shown = subprocess.run([*command, "--dry-run"], cwd=spaced, capture_output=True, text=True, check=True).stdout
    assert " ".join(launched) in shown and "'paths.run=runs of mine/a run'" in shown
    assert shlex.split(shown.splitlines()[-1])[0] == str(python)


@pytest.mark.heavy
def test_hosts_get_no_path_with_spaces(spaced: Path, tmp_path: Path) -> None:
    (spaced / "my hosts").write_text("one slots=1\n")
    words = ["run", "train", "demo-with", "--hostfile", "my hosts", "--dry-run"]
    done = randcond(spaced, *words, code=2)
    assert "the working directory" in done.stderr and "characters that pdsh does not pass on" in done.stderr
    (tmp_path / "my hosts").write_text("one slots=1\n")
    assert "--hostfile 'my hosts' --force_multi" in randcond(tmp_path, *words).stdout
    command = [str(environment_with_spaces(spaced)), "-m", "randcond.launch.cli", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "the environment's Python" in done.stderr


def test_torch_links_in_an_environment_with_spaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the linker with the flags that torch gives it; compiling a whole operator takes a minute."""
    (tmp_path / "my env").mkdir()
    (tmp_path / "my env/lib").symlink_to(cpp_extension.TORCH_LIB_PATH)
    monkeypatch.setattr(cpp_extension, "TORCH_LIB_PATH", str(tmp_path / "my env/lib"))
    (tmp_path / "empty.cpp").write_text("")

    def links() -> bool:
        flags = cpp_extension._prepare_ldflags([], with_cuda=False, with_sycl=False, verbose=False, is_standalone=False)
        command = f"c++ -shared -fPIC empty.cpp -o empty.so {' '.join(flags)}"  # as ninja does
        return subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True).returncode == 0

    assert not links()
    quote_library_path.__wrapped__()
    assert links()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone in a path with spaces, whose environment is only a `randcond` that shows its arguments."""
    folder = tmp_path / "a clone" / "rand cond"
    folder.mkdir(parents=True)
    files = subprocess.run(["git", "ls-files"], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    for name in files.splitlines():
        if name == "Makefile" or name.startswith("launch/") or name in ("pyproject.toml", "requirements.lock"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if (CHECKOUT / name).is_file():
                shutil.copy(CHECKOUT / name, folder / name)
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/randcond").write_text("#!/bin/sh\nprintf '<%s>' \"$@\"\n")
    (folder / ".venv/bin/randcond").chmod(0o755)
    (folder / ".venv/.packages").touch()
    (folder / ".venv/.ready").touch()  # newer, so make has nothing to install
    return folder


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *words], cwd=folder, env=clean, capture_output=True, text=True)


def test_make_in_a_path_with_spaces(clone: Path) -> None:
    done = make(clone, "demo", "HOSTFILE=my hosts", "NODES=2", "SBATCH=--time=1 --mem=0", "ARGS=train.steps=1 'a=b c'")
    expected = "<run><all><demo><--hostfile><my hosts><--nodes><2><--sbatch><--time=1 --mem=0><train.steps=1><a=b c>"
    assert done.stdout == expected, done.stderr
    said = make(clone, "help").stdout
    assert "demo-with" in said and "setup" in said
    refused = make(clone, "demo", "VENV=my env")
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1
    assert "VENV=my env: a folder without spaces is needed" in refused.stderr


def test_every_target_of_make_stands_in_a_path_with_spaces(clone: Path) -> None:
    """A dry run of each target: its commands are commands of a shell, and none holds the path with the spaces."""
    targets = [line.split(":")[0] for line in (clone / "Makefile").read_text().splitlines() if "## " in line]
    targets = [target for target in targets if target.replace("-", "").isalpha()]
    assert {"setup", "lint", "test", "docs", "bench"} < set(targets)
    (clone / ".venv/.ready").unlink()
    for target in [*targets, "demo-with", "table1-row5"]:
        done = make(clone, "-n", target)
        assert done.returncode == 0, done.stderr
        assert str(clone) not in done.stdout
        checked = subprocess.run(["sh", "-n"], input=done.stdout, capture_output=True, text=True)
        assert checked.returncode == 0 and done.stdout, f"{target}: {checked.stderr}"


def test_messages_quote_what_must_be_quoted(spaced: Path) -> None:
    words = ["demo-with", *TINY, "paths.cache=no cache", "paths.run=a run", "cache.exclude=[three]", "--gpus", "1"]
    done = warm.run([warm.Command("randcond.launch.cli", ["run", "train", *words], spaced)])[0]
    assert done.returncode == 2
    command = done.stderr.partition("with `")[2].partition("`")[0]
    assert shlex.split(command) == ["randcond", "run", "cache", *words[:-2]]
