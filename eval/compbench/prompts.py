"""T2I-CompBench's validation prompts (Table D), as they are published: a text file for each category.

In: the folder that `randcond fetch compbench` fills. Out: prompts in their order, and what a complex one is scored by.
"""

from collections.abc import Sequence
from pathlib import Path

from randcond.data.inputs.catalogue import MissingInput, missing_input
from randcond.launch.errors import UserError

ATTRIBUTES = ("color", "shape", "texture")
CATEGORIES = (*ATTRIBUTES, "spatial", "non_spatial", "complex")

# Kind of a complex prompt, as its list is called -> the scores whose mean it gets.
COMPLEX_KINDS = {
    "spatial": ("attribute", "spatial"),
    "action": ("attribute", "action"),
    "spatialaction": ("attribute", "spatial", "action"),
}


def read_prompts(folder: Path, category: str) -> list[str]:
    """A category's prompts, 300 as published, in the order of `{category}_val.txt`.

    A prompt is what stands before the first tab (labels may follow), without blanks around it; a final full stop is
    part of it, because the published scores are of images drawn with it. Raises UserError naming an unknown category,
    a file that is not there or is no UTF-8, and the line that is empty or repeats another.
    """
    if category not in CATEGORIES:
        raise UserError(f"T2I-CompBench has no category {category!r}; known: {', '.join(CATEGORIES)}")
    return _read_list(folder / f"{category}_val.txt")


def read_complex_kinds(folder: Path, prompts: Sequence[str]) -> list[str]:
    """The kind of each complex prompt (a key of COMPLEX_KINDS): which of the three published lists it stands in.

    Case and full stops don't count, as in the published scores; those put a prompt of no list with the third, which
    would hide a typing error. Raises UserError naming the prompt that stands in none of the lists, or in two.
    """
    found: dict[str, str] = {}
    for kind in COMPLEX_KINDS:
        path = folder / f"complex_val_{kind}.txt"
        for prompt in _read_list(path):
            other = found.setdefault(_key(prompt), kind)
            if other != kind:
                raise UserError(f"{path}: {prompt!r} stands in complex_val_{other}.txt, too; keep it in one of them")
    for prompt in prompts:
        if _key(prompt) not in found:
            lists = ", ".join(f"complex_val_{kind}.txt" for kind in COMPLEX_KINDS)
            raise UserError(f"{folder}: the complex prompt {prompt!r} stands in none of {lists}; add it to one")
    return [found[_key(prompt)] for prompt in prompts]


def _key(prompt: str) -> str:
    return prompt.lower().rstrip(". ")


def _read_list(path: Path) -> list[str]:
    if not path.is_file():
        way_out = missing_input(str(path)) or "; `randcond fetch compbench` brings the published lists"
        raise MissingInput(f"{path}: no such file{way_out}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from None
    lines: dict[str, int] = {}  # prompt -> the line it stands in
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        prompt = line.split("\t")[0].strip()
        if not prompt:
            raise UserError(f"{path}, line {number}: holds no prompt; remove the line")
        if prompt in lines:  # a first version of color_val.txt has four of them
            raise UserError(
                f"{path}, line {number}: {prompt!r} stands in line {lines[prompt]} already, and a prompt counts once; "
                f"remove the line, or get the current list by `randcond fetch compbench`"
            )
        lines[prompt] = number
    return list(lines)
