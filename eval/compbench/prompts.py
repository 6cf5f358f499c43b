"""T2I-CompBench's validation prompts (Table D) in their published format: one text file per category.

In: the folder that `randcond fetch compbench` fills. Out: prompts in the order of the files, and the kinds of the
complex prompts.
"""

from collections.abc import Sequence
from pathlib import Path

from randcond.data.inputs.catalogue import MissingInput, missing_input
from randcond.data.rows.tables import read_lines
from randcond.launch.errors import UserError

ATTRIBUTES = ("color", "shape", "texture")
CATEGORIES = (*ATTRIBUTES, "spatial", "non_spatial", "complex")

# Kind of a complex prompt, as in the name of its list -> the scores that are averaged for it.
COMPLEX_KINDS = {
    "spatial": ("attribute", "spatial"),
    "action": ("attribute", "action"),
    "spatialaction": ("attribute", "spatial", "action"),
}


def read_prompts(folder: Path, category: str) -> list[str]:
    """Reads the prompts of a category (300 in the published lists), in the order of `{category}_val.txt`.

    A prompt is the text before the first tab, without surrounding blanks; labels may follow the tab. A final full stop
    is kept, because the published scores come from images drawn with it. Raises UserError naming an unknown category, a
    file that is missing or not text in UTF-8 or UTF-16, or a line that is empty or repeats another one.
    """
    if category not in CATEGORIES:
        raise UserError(f"T2I-CompBench has no category {category!r}; known: {', '.join(CATEGORIES)}")
    return _read_list(folder / f"{category}_val.txt")


def read_complex_kinds(folder: Path, prompts: Sequence[str]) -> list[str]:
    """Returns the kind of each complex prompt, a key of COMPLEX_KINDS: the published list that contains it.

    Case and final full stops are ignored, as in the published scores. The published code puts a prompt that is in no
    list into the third kind, which would hide typing errors. Here it is an error: raises UserError naming a prompt that
    is in no list, or in two lists.
    """
    kinds: dict[str, str] = {}
    for kind in COMPLEX_KINDS:
        path = folder / f"complex_val_{kind}.txt"
        for prompt in _read_list(path):
            other = kinds.setdefault(_key(prompt), kind)
            if other != kind:
                raise UserError(f"{path}: {prompt!r} is also in complex_val_{other}.txt; keep it in one of them")
    for prompt in prompts:
        if _key(prompt) not in kinds:
            lists = ", ".join(f"complex_val_{kind}.txt" for kind in COMPLEX_KINDS)
            raise UserError(f"{folder}: the complex prompt {prompt!r} is in none of {lists}; add it to one of them")
    return [kinds[_key(prompt)] for prompt in prompts]


def _key(prompt: str) -> str:
    return prompt.lower().rstrip(". ")


def _read_list(path: Path) -> list[str]:
    if not path.is_file():
        remedy = missing_input(str(path)) or "; `randcond fetch compbench` downloads the published lists"
        raise MissingInput(f"{path}: no such file{remedy}")
    line_numbers: dict[str, int] = {}  # prompt -> the number of its line
    for number, line in enumerate(read_lines(path) or [""], 1):
        prompt = line.split("\t")[0].strip()
        if not prompt:
            raise UserError(f"{path}, line {number}: has no prompt; remove the line")
        if prompt in line_numbers:  # the first published version of color_val.txt repeats four prompts
            raise UserError(
                f"{path}, line {number}: {prompt!r} is already in line {line_numbers[prompt]}, and a prompt counts "
                f"once; remove the line, or download the current list with `randcond fetch compbench`"
            )
        line_numbers[prompt] = number
    return list(line_numbers)
