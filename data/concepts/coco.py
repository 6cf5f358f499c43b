"""Splits COCO's captions into seen and unseen, by the objects in their images (Table 2, supplement J)."""

import csv
import json
from pathlib import Path
from typing import Any

from randcond.data.captions.readers import readable_csv
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
    instances = _read(annotations, f"instances_{dataset}.json", ("categories", "annotations"))
    captions = _read(annotations, f"captions_{dataset}.json", ("images", "annotations"))
    groups = {category["id"]: category["supercategory"] for category in instances["categories"]}
    if supercategory not in groups.values():
        known = ", ".join(sorted(set(groups.values())))
        raise UserError(f"--supercategory: unknown supercategory {supercategory!r}; known: {known}")
    unseen = {item["image_id"] for item in instances["annotations"] if groups[item["category_id"]] == supercategory}
    first: dict[int, str] = {}
    for annotation in sorted(captions["annotations"], key=lambda annotation: annotation["id"]):
        first.setdefault(annotation["image_id"], annotation["caption"])
    prompt_of = _prompts(prompts) if prompts else {}
    files = {image["file_name"] for image in captions["images"]}
    if unknown := sorted(set(prompt_of) - files):
        raise UserError(f"{prompts}: {len(unknown)} images are not in {dataset}, the first is {unknown[0]}")
    rows: dict[str, list[tuple[str, str]]] = {"all": [], "seen": [], "unseen": []}
    for image in sorted(captions["images"], key=lambda image: image["id"]):
        name, number = image["file_name"], image["id"]
        if name not in prompt_of and number not in first:
            raise UserError(f"captions_{dataset}.json: image {name} has no caption")
        row = (name, " ".join((prompt_of.get(name) or first[number]).split()))
        rows["all"].append(row)
        rows["unseen" if number in unseen else "seen"].append(row)
    for split, split_rows in rows.items():
        with atomic_write(out / f"{split}.csv") as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("file_name", "caption"))
            writer.writerows(split_rows)
    return {split: len(split_rows) for split, split_rows in rows.items()}


def _read(folder: Path, name: str, keys: tuple[str, ...]) -> dict[str, Any]:
    path = next(iter(sorted(folder.rglob(name))), None)
    if path is None:
        raise UserError(f"{folder}: contains no {name}; download it with `randcond fetch coco-annotations`")
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: damaged JSON ({error})") from None
    if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in keys):
        raise UserError(f"{path}: not a COCO annotation file, because it lacks a list of {' or '.join(keys)}")
    return data


def _prompts(path: Path) -> dict[str, str]:
    """Reads a csv and returns file name -> caption."""
    with path.open(newline="") as file, readable_csv(path):
        rows = csv.DictReader(file)
        names = {name.lower().replace(" ", "_"): name for name in rows.fieldnames or []}
        caption = next((names[key] for key in ("caption", "text") if key in names), None)
        if "file_name" not in names or caption is None:
            raise UserError(f"{path}: has columns {', '.join(names)}, expected file_name and caption (or text)")
        return {Path(row[names["file_name"]]).name: row[caption] for row in rows}
