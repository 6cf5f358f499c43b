"""Where a student comes from: the published model at its beginning, and the licence that holds for it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from randcond.launch.config.paths import resolve_path
from randcond.launch.config.strict_yaml import load_yaml
from randcond.launch.errors import UserError
from randcond.model_zoo.checkpoints.hub import is_hub_id

_PUBLISHED = {  # a download for drawing leaves out the model card
    "CompVis/stable-diffusion-v1-4": {"license": "creativeml-openrail-m"},
    "stabilityai/stable-diffusion-2-1": {"license": "openrail++"},
    "stabilityai/stable-diffusion-xl-base-1.0": {"license": "openrail++"},
    "PixArt-alpha/PixArt-XL-2-1024-MS": {"license": "openrail++"},
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": {"license": "openrail++"},
    "PixArt-alpha/PixArt-Sigma-XL-2-512-MS": {"license": "openrail++"},
    "stabilityai/stable-diffusion-3.5-medium": {
        "license": "other",
        "license_name": "stabilityai-ai-community",
        "license_link": "https://huggingface.co/stabilityai/stable-diffusion-3.5-medium/blob/main/LICENSE.md",
    },
    "black-forest-labs/FLUX.2-klein-base-4B": {"license": "apache-2.0"},
}
_RESTRICTIONS = {  # part of a licence's name -> what it asks
    "openrail": "It has use restrictions (its Attachment A): they hold for the student too, and whoever shares the "
    "student must pass them on.",
    "-nc": "It allows no commercial use.",
    "stabilityai-ai-community": "It limits commercial use by revenue, and asks whoever shares the student to pass on "
    "the licence and a notice.",
}


@dataclass(frozen=True)
class Origin:
    """The licence of a student, by the names of the hub's model cards."""

    licence: str = "other"  # other: see licence_name, or unknown if that is empty
    licence_name: str = ""
    licence_link: str = ""
    base_model: str = ""  # hub id

    @property
    def name(self) -> str:
        """The licence's name, "" if it is unknown."""
        return self.licence_name if self.licence == "other" else self.licence

    @property
    def restrictions(self) -> list[str]:
        """What the licence asks, in words."""
        return [text for part, text in _RESTRICTIONS.items() if part in self.name.lower()]

    @property
    def front_matter(self) -> dict[str, str]:
        """The keys of a model card that are known."""
        keys = {"license_name": self.licence_name, "license_link": self.licence_link, "base_model": self.base_model}
        return {"license": self.licence, **{key: value for key, value in keys.items() if value}}

    def in_words(self, teacher: str, files: list[str]) -> str:
        """Returns what a user must know about the licence. `files`: names of licence texts beside the card."""
        name = self.name
        because = "The student is derived from the teacher and holds parts of it"
        if not name:
            where = f"at https://huggingface.co/{self.base_model}" if self.base_model else f"where {teacher} comes from"
            return f"The teacher's folder states no licence. {because}: look it up {where} before you use the student."
        link = f" ({self.licence_link})" if "://" in self.licence_link else ""
        words = [f"The teacher's licence is {name}{link}. {because}, so this licence holds for it too."]
        words += self.restrictions
        words += [f"Its text: {', '.join(files)}."] if files else []
        return " ".join(words)


def of_teacher(path: str, folder: Path) -> Origin:
    """Returns the origin of a student of the teacher at `path` (of the configuration), whose files are in `folder`."""
    stated = next((found for each in (folder, resolve_path(path)) if "license" in (found := _front_matter(each))), {})
    hub_id = path if is_hub_id(path) else ""
    return _origin({**_PUBLISHED.get(hub_id, {}), **stated, "base_model": hub_id or stated.get("base_model", "")})


def of_student(folder: Path) -> Origin | None:
    """Returns the origin that an exported student's model card states, or None if it is an older card without it."""
    stated = _front_matter(folder)
    return _origin(stated) if "license" in stated else None


def earlier_teachers(folder: Path) -> list[str]:
    """Returns the teachers that a teacher was itself distilled from, by its model card, the nearest first.

    They are as the card names them. [] if it is not a student of this project.
    """
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    line = re.search(r"^Distilled with randcond .*? from (`.*`)\.$", text, re.MULTILINE)
    return re.findall(r"`([^`]+)`", line[1]) if line else []


def trained_size(teacher: Path) -> int | None:
    """Returns the pixels of an image's side that a student was trained on, by its model card.

    None if it was its own teacher's size, or if the folder is no student of this project.
    """
    card = teacher / "README.md"
    if not earlier_teachers(teacher):
        return None
    found = re.search(r"height=(\d+), width=\1\b", card.read_text(encoding="utf-8", errors="replace"))
    return int(found[1]) if found else None


def earlier_in_words(folder: Path, origin: Origin) -> str:
    """Returns what a user must know about the licence of the student that training started from.

    `folder`: of that student; `origin`: of the new one, by its teacher. "" if both have the same licence.
    """
    earlier = of_student(folder) or Origin()
    if earlier.name == origin.name:
        return ""
    start = "The training started from an earlier student"
    if not earlier.name:
        return f"{start}, whose folder states no licence."
    return " ".join([f"{start}, whose licence is {earlier.name}: it holds for this one too.", *earlier.restrictions])


def _origin(stated: dict[str, Any]) -> Origin:
    def text(key: str) -> str:
        value = stated.get(key)
        value = value[0] if isinstance(value, list) and value else value
        return value if isinstance(value, str) else ""

    return Origin(text("license") or "other", text("license_name"), text("license_link"), text("base_model"))


def _front_matter(folder: Path) -> dict[str, Any]:
    """Returns the YAML at the head of a folder's model card; {} if there is none, or if it is damaged."""
    card = folder / "README.md"
    try:
        text = card.read_text(encoding="utf-8") if card.is_file() else ""
        head = text.split("\n---", 1)[0].removeprefix("---\n") if text.startswith("---\n") else ""
        found = load_yaml(head) if head else {}
    except (UserError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
