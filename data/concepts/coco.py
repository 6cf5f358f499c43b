"""COCO's evaluation captions, split by a supercategory of the objects in their images (Table 2, supplement J)."""

import csv
import json
from pathlib import Path
from typing import Any

from randcond.launch.errors import UserError
from randcond.launch.runtime.files import atomic_write


def split_coco(
    annotations: Path, out: Path, supercategory: str, prompts: Path | None, dataset: str = "val2014"
) -> dict[str, int]:
    """Writes OUT/seen.csv, unseen.csv and all.csv (columns file_name, caption), one caption per image; their counts.

    `annotations`: a folder that holds instances_DATASET.json and captions_DATASET.json, somewhere below. An image is
    unseen when one of its objects is of the supercategory. The caption of an image is that of `prompts` (a csv with
    file name and caption, as BK-SDM publishes 30K), else its first by annotation id. Raises UserError naming a file
    that is not COCO's.
    """
    instances = _read(annotations, f"instances_{dataset}.json", ("categories", "annotations"))
    captions = _read(annotations, f"captions_{dataset}.json", ("images", "annotations"))
    groups = {each["id"]: each["supercategory"] for each in instances["categories"]}
    if supercategory not in groups.values():
        raise UserError(f"--supercategory: COCO has {', '.join(sorted(set(groups.values())))}, got {supercategory!r}")
    unseen = {each["image_id"] for each in instances["annotations"] if groups[each["category_id"]] == supercategory}
    first: dict[int, str] = {}
    for each in sorted(captions["annotations"], key=lambda each: each["id"]):
        first.setdefault(each["image_id"], each["caption"])
    listed = _prompts(prompts) if prompts else {}
    files = {each["file_name"] for each in captions["images"]}
    if strangers := sorted(set(listed) - files):
        raise UserError(f"{prompts}: {len(strangers)} images are not in {dataset}, the first {strangers[0]}")
    rows: dict[str, list[tuple[str, str]]] = {"all": [], "seen": [], "unseen": []}
    for image in sorted(captions["images"], key=lambda image: image["id"]):
        name, number = image["file_name"], image["id"]
        if name not in listed and number not in first:
            raise UserError(f"captions_{dataset}.json: image {name} has no caption")
        row = (name, " ".join((listed.get(name) or first[number]).split()))
        rows["all"].append(row)
        rows["unseen" if number in unseen else "seen"].append(row)
    for part, held in rows.items():
        with atomic_write(out / f"{part}.csv") as aside, aside.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("file_name", "caption"))
            writer.writerows(held)
    return {part: len(held) for part, held in rows.items()}


def _read(folder: Path, name: str, keys: tuple[str, ...]) -> dict[str, Any]:
    path = next(iter(sorted(folder.rglob(name))), None)
    if path is None:
        raise UserError(f"no {name} in {folder}: `randcond fetch coco-annotations` brings it")
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: damaged JSON ({error})") from None
    if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in keys):
        raise UserError(f"{path}: not COCO's annotations: no {' or '.join(keys)}")
    return data


def _prompts(path: Path) -> dict[str, str]:
    """File name -> caption."""
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        names = {name.lower().replace(" ", "_"): name for name in rows.fieldnames or []}
        caption = next((names[key] for key in ("caption", "text") if key in names), None)
        if "file_name" not in names or caption is None:
            raise UserError(f"{path}: needs columns file_name and caption (or text), has {', '.join(names)}")
        return {Path(row[names["file_name"]]).name: row[caption] for row in rows}
