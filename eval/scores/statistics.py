"""Statistics of real images, which drawn ones are compared with: one .npz per split, mu and sigma as pytorch-fid's.

In: a folder of images, lists of file names by split. Out: SPLIT.npz (mu [d], sigma [d, d], facts as JSON text) and
SPLIT.safetensors (features of up to 10,000 of them, for KID, precision and recall); SPLIT-dino.* for DINOv2.
"""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from randcond.data.inputs.catalogue import MissingInput, missing_input
from randcond.eval.images.prompts import ALL
from randcond.eval.scores.moments import Moments
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import atomic_write, sha256

KEPT = 10_000  # features of a split that are kept


@dataclass(frozen=True)
class Reference:
    """The statistics of one split of real images."""

    path: Path
    moments: Moments
    facts: dict[str, Any]  # {extractor, size, images, ...}; empty where the file says nothing (other tools' files)

    @property
    def identity(self) -> str:
        """What tells these statistics from others, for the protocol."""
        return identity_of(self.path)

    def features(self) -> Tensor:
        """Features [up to 10,000, d] of the real images; raises UserError where the statistics came without."""
        kept = find_features(self.path)
        if self.facts and sha256(kept)[:16] != self.facts.get("features_sha256"):
            raise UserError(f"eval.statistics: {kept} is not what {self.path.name} was made with; make both again")
        return load_file(kept)["features"]


def identity_of(path: Path) -> str:
    """What tells statistics from others, for the protocol; their facts hold the checksum of their features."""
    return f"{path.name} {sha256(path)[:16]}"


def file_name(split: str, row: str) -> str:
    """The file of a split's statistics of a row of features."""
    return f"{split}.npz" if row == "inception" else f"{split}-{row}.npz"


def write_statistics(folder: Path, split: str, row: str, features: Tensor, facts: dict[str, Any]) -> Path:
    """Writes the statistics of features [n, d]; raises UserError for fewer than two."""
    if len(features) < 2:
        raise UserError(f"split {split}: {len(features)} images; statistics need more than one")
    moments = Moments.of(features)
    path = folder / file_name(split, row)
    kept = torch.from_numpy(np.random.default_rng(0).permutation(len(features))[:KEPT].copy()).sort().values
    with atomic_write(path.with_suffix(".safetensors")) as aside:
        save_file({"features": features[kept].contiguous()}, aside)
    with atomic_write(path) as aside, aside.open("wb") as file:
        known = {**facts, "images": len(features), "features_sha256": sha256(path.with_suffix(".safetensors"))[:16]}
        text = np.array(json.dumps(known))
        np.savez(file, mu=moments.mean, sigma=moments.covariance, facts=text)
    return path


def find_statistics(where: str, split: str, row: str) -> Path:
    """The file of a split: SPLIT.npz of a folder; one file that was given is of "all", and of Inception.

    Raises UserError naming what is not there, or what the one file can't serve.
    """
    path = Path(where)
    if path.suffix == ".npz" and not path.is_dir():
        if (split, row) != (ALL, "inception"):
            raise UserError(
                f"eval.statistics: {path} is one file, and {split} ({row}) needs its own: give a folder with "
                f"{file_name(split, row)}; `randcond eval stats --splits` makes it"
            )
    else:
        path = path / file_name(split, row)
    if not path.is_file():
        hint = missing_input(where) or "; `randcond eval stats` makes them of a folder of images"
        raise MissingInput(f"eval.statistics: no {path}{hint}")
    return path


def find_features(statistics: Path) -> Path:
    """The file of real images' features beside their statistics; raises UserError where these came without."""
    path = statistics.with_suffix(".safetensors")
    if not path.is_file():
        raise UserError(
            f"eval.statistics: {statistics} has no features beside it ({path.name}), which KID, precision and recall "
            f"need; `randcond eval stats` writes them"
        )
    return path


def read_statistics(where: str, split: str, row: str, wanted: dict[str, Any], width: int) -> Reference:
    """The statistics of a split, found as `find_statistics` does.

    Raises UserError naming the file when it is not statistics of `width` features, or its own facts say otherwise
    than `wanted` (extractor, jpeg).
    """
    path = find_statistics(where, split, row)
    try:
        with np.load(path, allow_pickle=False) as held:
            mean, covariance = held["mu"].astype(np.float64), held["sigma"].astype(np.float64)
            facts = json.loads(str(held["facts"])) if "facts" in held else {}
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"eval.statistics: {path}: not FID statistics with mu and sigma ({error})") from None
    if mean.shape != (width,) or covariance.shape != (width, width):
        raise UserError(
            f"eval.statistics: {path}: mu {mean.shape} and sigma {covariance.shape}, wanted are those of {width} "
            f"features"
        )
    for name, value in wanted.items():
        if facts and facts.get(name) != value:
            raise UserError(
                f"eval.statistics: {path}: made with {name} {facts.get(name)}, the evaluation uses {value}; make them "
                f"with the same (`randcond eval stats`), or give others"
            )
    return Reference(path, Moments(int(facts.get("images", 0)), mean, covariance), facts)
