"""Imports point one way, and only the engines' seam knows the engines."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LEAVES = {
    "launch.config",
    "launch.sections",
    "launch.table",
    "launch.protocols",
    "launch.stage",
    "launch.logs",
    "launch.gpus",
    "launch.batch",
}
ALLOWED = {  # package -> packages of ours it may import
    "launch": {"model_zoo"},  # the planner; the rest of it starts without torch
    "model_zoo": set(),
    "data": {"model_zoo"},
    "eval": {"data", "model_zoo"},
    "train": {"data", "eval", "model_zoo"},
}


def imported(path: Path) -> set[str]:
    """Every module a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


def test_imports_point_one_way() -> None:
    for package, allowed in ALLOWED.items():
        for path in (ROOT / package).rglob("*.py"):
            for name in imported(path):
                if not name.startswith("randcond."):
                    continue
                target = name.removeprefix("randcond.")
                ours = target.split(".")[0]
                fine = ours == package or ours in allowed or (target in LEAVES and package != "model_zoo")
                assert fine, f"{path.relative_to(ROOT)} imports {name}"


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
    """Threads are pinned by the configuration, which is read first: torch counts them when it is imported."""
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
                    if name == "torch.load":  # published .pth files: tensors only
                        given = {each.arg: ast.unparse(each.value) for each in node.keywords}
                        assert given.get("weights_only") == "True", where
                    if name == "yaml.load":
                        assert "_Loader" in ast.unparse(node), where  # ours is a SafeLoader
