"""Rules that all source files follow: one-way imports, small rooms, no pickles.

A room is a folder of a package, see docs/layout.md.
"""

import ast
import subprocess
import sys
import tomllib
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
# All packages but model_zoo may import these.
GROUND_FLOOR = {
    "launch.errors",
    "launch.urls",
    "launch.config",
    "launch.keys",
    "launch.machine",
    "launch.runtime",
    "launch.device",
    "launch.planning",
    "launch.install",
}
ALLOWED = {  # package -> other packages that it may import
    "launch": {"model_zoo"},  # only in launch/planning and launch/device: the rest of launch starts without torch
    "model_zoo": set(),
    "data": {"model_zoo"},
    "eval": {"data", "model_zoo"},
    "train": {"data", "eval", "model_zoo"},
}
BELOW_MODEL_ZOO = {"launch.errors", "launch.config.engines"}  # what model_zoo may import of them
LARGEST_ROOM = 12  # files


def imported(path: Path) -> set[str]:
    """Returns every module that a file imports, at any place; for `from PACKAGE import MODULE`, the module."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            inside = ROOT.joinpath(*(node.module or "").split(".")[1:])
            modules = {alias.name for alias in node.names if (inside / f"{alias.name}.py").is_file()}
            names |= {f"{node.module}.{name}" for name in modules} or {node.module or ""}
    return names


def room(module: str) -> str:
    """Returns the room of a module (named without `randcond.`). A file at the top of a package is a room of its own."""
    return ".".join(module.split(".")[:2])


def modules() -> dict[str, Path]:
    """Returns every module of the five packages: name without `randcond.` -> path."""
    found = {}
    for package in ALLOWED:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def rooms_imported(path: Path) -> set[str]:
    """Returns the rooms that a file imports from."""
    return {room(name.removeprefix("randcond.")) for name in imported(path) if name.startswith("randcond.")}


def test_imports_point_one_way_between_packages() -> None:
    for name, path in modules().items():
        package = name.split(".")[0]
        for module in (each.removeprefix("randcond.") for each in imported(path) if each.startswith("randcond.")):
            ours = module.split(".")[0]
            below = module in BELOW_MODEL_ZOO if package == "model_zoo" else room(module) in GROUND_FLOOR
            assert ours == package or ours in ALLOWED[package] or below, f"{path.relative_to(ROOT)} imports {module}"
            planning = room(name) in ("launch.planning", "launch.device")
            assert ours != "model_zoo" or package != "launch" or planning, path


def test_rooms_import_each_other_in_no_circle() -> None:
    edges: dict[str, set[str]] = {}
    for name, path in modules().items():
        edges.setdefault(room(name), set()).update(rooms_imported(path) - {room(name)})
    order = list(TopologicalSorter(edges).static_order())  # raises CycleError, which names the cycle
    floors = ["launch.config", "launch.machine", "launch.runtime", "train.loop"]
    assert sorted(floors, key=order.index) == floors


def test_a_room_holds_at_most_a_dozen_files() -> None:
    counts = Counter(path.parent.relative_to(ROOT) for path in modules().values())
    assert {str(folder): count for folder, count in counts.items() if count > LARGEST_ROOM} == {}


def test_every_room_is_installed() -> None:
    """pyproject.toml lists every folder, because setuptools installs only what it lists."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in modules().values()}
    assert set(settings["packages"]) == {f"randcond.{folder}" for folder in folders}


def test_git_ignores_no_source_file() -> None:
    """A folder with an ignored name (inputs, runs) would exist here but be missing in every clone."""
    command = ["git", "ls-files", "--others", "--ignored", "--exclude-standard", "--", *ALLOWED, "tests", "docs"]
    ignored = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert [path for path in ignored if "__pycache__" not in path] == []


def test_only_the_seam_imports_the_engines() -> None:
    seam = ROOT / "train" / "engine"
    for package in ALLOWED:
        for path in (ROOT / package).rglob("*.py"):
            engines = {name for name in imported(path) if name.split(".")[0] == "deepspeed" or "fsdp" in name}
            assert not engines or seam in path.parents, f"{path.relative_to(ROOT)} imports {engines}"


def test_the_command_line_starts_without_torch() -> None:
    code = "import sys, randcond.launch.cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_stages_start_without_torch() -> None:
    """Torch reads the number of threads on import, and the configuration sets it. So torch is imported later."""
    stages = ", ".join(f"randcond.{package}.__main__" for package in ("data", "train", "eval"))
    code = f"import sys, {stages}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_nothing_executable_is_loaded() -> None:
    for package in ALLOWED:
        for path in (ROOT / package).rglob("*.py"):
            where = path.relative_to(ROOT)
            assert not imported(path) & {"pickle", "dill", "joblib", "cloudpickle"}, where
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "trust_remote_code"):
                    assert isinstance(node.value, ast.Constant) and node.value.value is False, where
                if isinstance(node, ast.Call):
                    name = ast.unparse(node.func)
                    assert name not in ("eval", "exec", "yaml.load_all", "yaml.unsafe_load"), where
                    if name == "torch.load":  # for published .pth files; loads only tensors
                        given = {each.arg: ast.unparse(each.value) for each in node.keywords}
                        assert given.get("weights_only") == "True", where
                    if name == "yaml.load":
                        assert "StrictLoader" in ast.unparse(node), where  # our own subclass of SafeLoader
