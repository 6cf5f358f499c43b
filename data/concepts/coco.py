"""Splits COCO's captions into seen and unseen, by the objects in their images (Table 2, supplement J)."""

import csv
import json
from pathlib import Path, PurePosixPath
from typing import Any

from randcond.data.rows.columns import CAPTION, FILE_NAME, Column, wrong_value
from randcond.data.rows.tables import read_table
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import atomic_write


def split_coco(
    annotations: Path, out: Path, supercategory: str, prompts: Path | None, dataset: str = "val2014"
) -> dict[str, int]:
    """Writes OUT/seen.csv, unseen.csv and all.csv (columns file_name, caption), with one caption per image.

    An image is unseen if one of its objects belongs to the supercategory. `annotations`: a folder that contains
    instances_DATASET.json and captions_DATASET.json at any depth. `prompts`: a csv with file name and caption, such as
    the 30K captions published by BK-SDM. An image that it does not list gets its first caption by annotation id.
    Returns the number of captions of each split. Raises UserError if a file is missing or not in COCO's format.
    """
    instances = _read(annotations, f"instances_{dataset}.json", _INSTANCES)
    captions = _read(annotations, f"captions_{dataset}.json", _CAPTIONS)
    groups = {category["id"]: category["supercategory"] for category in instances["categories"]}
    if supercategory not in groups.values():
        known = ", ".join(sorted(set(groups.values())))
        raise UserError(f"--supercategory: unknown supercategory {supercategory!r}; known: {known}")
    if unknown := {item["category_id"] for item in instances["annotations"]} - set(groups):
        raise UserError(f"instances_{dataset}.json: its annotations name the category {min(unknown)}, which it lacks")
    unseen = {item["image_id"] for item in instances["annotations"] if groups[item["category_id"]] == supercategory}
    first: dict[int, str] = {}
    for annotation in sorted(captions["annotations"], key=lambda annotation: annotation["id"]):
        first.setdefault(annotation["image_id"], annotation["caption"])
    prompt_of = _prompts(prompts) if prompts else {}
    files = {image["file_name"] for image in captions["images"]}
    if foreign := sorted(set(prompt_of) - files):
        raise UserError(f"{prompts}: {len(foreign)} images are not in {dataset}, the first is {foreign[0]}")
    rows: dict[str, list[tuple[str, str]]] = {"all": [], "seen": [], "unseen": []}
    for image in sorted(captions["images"], key=lambda image: image["id"]):
        name, number = image["file_name"], image["id"]
        if name not in prompt_of and number not in first:
            raise UserError(f"captions_{dataset}.json: image {name} has no caption")
        row = (name, " ".join((prompt_of.get(name) or first[number]).split()))
        rows["all"].append(row)
        rows["unseen" if number in unseen else "seen"].append(row)
    for split, split_rows in rows.items():
        with atomic_write(out / f"{split}.csv") as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("file_name", "caption"))
            writer.writerows(split_rows)
    return {split: len(split_rows) for split, split_rows in rows.items()}


_INSTANCES: dict[str, dict[str, type]] = {
    "categories": {"id": int, "supercategory": str},
    "annotations": {"image_id": int, "category_id": int},
}
_CAPTIONS: dict[str, dict[str, type]] = {
    "images": {"id": int, "file_name": str},
    "annotations": {"id": int, "image_id": int, "caption": str},
}


def _read(folder: Path, name: str, lists: dict[str, dict[str, type]]) -> dict[str, list[dict[str, Any]]]:
    """Reads an annotation file. `lists`: the lists that it needs -> the keys of each entry -> type."""
    path = next(iter(sorted(folder.rglob(name))), None)
    remedy = "download it with `randcond fetch coco-annotations`"
    if path is None:
        raise UserError(f"{folder}: contains no {name}; {remedy}")
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged JSON ({error}); {remedy}") from None
    if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in lists):
        raise UserError(
            f"{path}: not a COCO annotation file, because it lacks a list of {' or '.join(lists)}; {remedy}"
        )
    for key, needed in lists.items():
        column = {field: Column((field,), number=kind is int) for field, kind in needed.items()}
        for number, entry in enumerate(data[key]):
            for field, kind in needed.items():
                value = entry.get(field) if isinstance(entry, dict) else None
                if not isinstance(value, kind) or wrong_value(column[field], value):
                    raise UserError(
                        f"{path}: not a COCO annotation file: {key}[{number}] has a wrong {field}; {remedy}"
                    )
    return data


def _prompts(path: Path) -> dict[str, str]:
    """Reads a csv and returns file name -> caption."""
    prompts: dict[str, str] = {}
    places: dict[str, str] = {}
    for row in read_table(path, {"file_name": FILE_NAME, "caption": CAPTION}):
        name, caption = PurePosixPath(row.values["file_name"]).name, row.values["caption"]
        if not name or not caption.strip():
            raise UserError(f"{path}, {row.place}: has no {'caption' if name else 'file name'}")
        if name in prompts and prompts[name] != caption:
            raise UserError(f"{path}, {row.place}: {name} has another caption in {places[name]}; keep one of them")
        prompts[name], places[name] = caption, row.place
    return prompts
