"""Writes docs/layout.md (`make layout`): a tree of the files with the first sentence of each docstring."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "layout.md"
PACKAGES = ("launch", "model_zoo", "data", "train", "eval", "tests")
WIDTH = 32  # column of the sentences
OTHER_FILES = {  # files and folders without a docstring
    "launch/experiments": "One YAML per experiment (a make target): the demo's, paper/ and mini/; base/ is shared",
    "launch/tables": "Tables of experiments (make targets too): the demo's, paper/ and mini/; results/ is kept",
    "launch/containers": "Recipes for images of Docker and Apptainer",
    "launch/prompts": "The captions of the paper's figures (supplements L and M)",
    "data/inputs/inputs.yaml": "The catalogue: URL, size and licence of each input",
    "data/concepts/animals.txt": "9,600 words for animals",
    "data/digits/captions.txt": "Its 3,200 captions",
    "data/digits/prompts.txt": "Its 1,280 prompts, phrased differently",
    "data/digits/images.tar": "Its 1,200 real images",
    "data/digits/models": "Its trained teacher and judge",
    "eval/report/page.html.j2": "The template of the HTML page",
    "tests/stages/made_by_08bc9e2": "Artefacts that an older version made: they must be reused",
    "tests/bench/record": "The results behind the figures of speed.md",
}
HEAD = """# What is where

`make layout` writes this page. Each line is the first sentence of the file's docstring; a folder's line is its
`__init__.py`'s. A folder is a room: one subject, at most a dozen files.

Imports point one way. `launch/errors.py`, `launch/urls.py`, `launch/install`, `launch/config`, `launch/machine` and
`launch/runtime` are the ground floor, which every package uses. `model_zoo` uses `launch/errors.py` and
`launch/config/engines.py` alone. `data` uses `model_zoo`, `eval` uses `data`, and `train` uses both. `launch` imports
no stage, because it starts stages as processes; it imports a tool's module when the tool is used, and only
`launch/planning` and `launch/device` use `model_zoo`. `tests/unit/test_imports.py` checks this, and that no two rooms
import each other.

"""


def summary(path: Path) -> str:
    """Returns the first sentence of a module's docstring, without its full stop."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    first = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<!\.)\.(?= [A-Z`]|$)", first)[0]


def lines(folder: Path, depth: int) -> list[str]:
    """Returns the lines of a folder's content: files first, then folders."""
    found = []
    files = [path for path in folder.iterdir() if path.is_file() and path.name != "__init__.py"]
    for path in sorted(files):
        name = str(path.relative_to(ROOT))
        if path.suffix == ".py" or name in OTHER_FILES:
            text = summary(path) if path.suffix == ".py" else OTHER_FILES[name]
            found.append(f"{'  ' * depth + path.name:{WIDTH - 1}} {text}")
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        init, name = path / "__init__.py", str(path.relative_to(ROOT))
        if init.is_file() or name in OTHER_FILES:
            text = OTHER_FILES.get(name) or summary(init)
            found.append(f"{'  ' * depth + path.name + '/':{WIDTH - 1}} {text}")
            found += lines(path, depth + 1) if init.is_file() else []
    return found


def page() -> str:
    """Returns the text of docs/layout.md."""
    tree = []
    for name in PACKAGES:
        tree.append(f"{name + '/':{WIDTH}}{summary(ROOT / name / '__init__.py')}")
        tree += lines(ROOT / name, 1)
    return f"{HEAD}```\n" + "\n".join(line.rstrip() for line in tree) + "\n```\n"


if __name__ == "__main__":
    PAGE.write_text(page())
