"""Statistics of real images: one .npz file per split with mu and sigma, in pytorch-fid's format.

In: features of real images by split. Out: SPLIT.npz (mu [d], sigma [d, d], facts as JSON text) and SPLIT.safetensors
(features of up to 10,000 images, for KID, precision and recall). Files of DINOv2 features are named SPLIT-dino.*.
"""

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from randcond.data.inputs.catalogue import MissingInput, missing_input
from randcond.eval.images.prompts import ALL
from randcond.eval.scores.moments import Moments
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import atomic_write, sha256

_MOST_FACTS = 1_000_000  # bytes of a text of facts
KEPT = 10_000  # most images of a split whose features are kept


@dataclass(frozen=True)
class Reference:
    """The statistics of one split of real images, for one feature."""

    path: Path
    moments: Moments
    facts: dict[str, Any]  # {extractor, size, images, ...}; empty for files of other tools, which hold no facts

    @property
    def identity(self) -> str:
        """Name and hash of the file, stored with the scores."""
        return identity_of(self.path)

    def features(self) -> Tensor:
        """Loads the features of the real images, fp32 [up to 10,000, d].

        Raises UserError if their file is missing or does not belong to the statistics.
        """
        path = find_features(self.path)
        if self.facts and sha256(path)[:16] != self.facts.get("features_sha256"):
            raise UserError(f"eval.statistics: {path} does not belong to {self.path.name}; make both again")
        try:
            return load_file(path)["features"]
        except (SafetensorError, KeyError) as error:
            raise UserError(
                f"eval.statistics: {path}: damaged, or not the features of real images ({error}); make it again with "
                f"`randcond eval stats`"
            ) from None


def identity_of(path: Path) -> str:
    """Returns name and hash of a statistics file. The file holds the hash of its features, so both are covered."""
    return f"{path.name} {sha256(path)[:16]}"


def file_name(split: str, feature: str) -> str:
    """Returns the name of the statistics file of a split, for a feature (inception or dino)."""
    return f"{split}.npz" if feature == "inception" else f"{split}-{feature}.npz"


def write_statistics(folder: Path, split: str, feature: str, features: Tensor, facts: dict[str, Any]) -> Path:
    """Writes the statistics of features [n, d] and returns their path; raises UserError for fewer than two images."""
    if len(features) < 2:
        raise UserError(f"split {split}: {len(features)} images; statistics need at least 2")
    moments = Moments.of(features)
    path = folder / file_name(split, feature)
    kept = torch.from_numpy(np.random.default_rng(0).permutation(len(features))[:KEPT].copy()).sort().values
    with atomic_write(path.with_suffix(".safetensors")) as temporary:
        save_file({"features": features[kept].contiguous()}, temporary)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        known = {**facts, "images": len(features), "features_sha256": sha256(path.with_suffix(".safetensors"))[:16]}
        text = np.array(json.dumps(known))
        np.savez(file, mu=moments.mean, sigma=moments.covariance, facts=text)
    return path


def find_statistics(where: str, split: str, feature: str) -> Path:
    """Returns the statistics file of a split. `where` is `eval.statistics`: a folder, or a single .npz file.

    A single file serves the split "all" and Inception features only. Raises UserError if the file is missing, or if
    a single file was given for another split or feature.
    """
    path = Path(where)
    if path.suffix == ".npz" and not path.is_dir():
        if (split, feature) != (ALL, "inception"):
            raise UserError(
                f"eval.statistics: {path} is a single file, but split {split} ({feature}) needs its own: give a folder "
                f"with {file_name(split, feature)}; make it with `randcond eval stats --splits`"
            )
    else:
        path = path / file_name(split, feature)
    if not path.is_file():
        hint = missing_input(where) or "; make it from a folder of images with `randcond eval stats`"
        raise MissingInput(f"eval.statistics: no {path}{hint}")
    return path


def find_features(statistics: Path) -> Path:
    """Returns the features file next to a statistics file; raises UserError if it is missing."""
    path = statistics.with_suffix(".safetensors")
    if not path.is_file():
        raise UserError(
            f"eval.statistics: {statistics} has no features file {path.name} next to it, which KID, precision and "
            f"recall need; make both with `randcond eval stats`"
        )
    return path


def read_statistics(where: str, split: str, feature: str, expected: dict[str, Any], width: int) -> Reference:
    """Reads the statistics file of a split, see find_statistics().

    Raises UserError naming the file if it does not hold statistics of `width` features, or if its facts differ from
    `expected` (extractor, jpeg).
    """
    path = find_statistics(where, split, feature)
    try:
        _check_headers(path, {"mu": (width,), "sigma": (width, width)})
        with np.load(path, allow_pickle=False) as arrays:
            mean, covariance = arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64)
            facts = json.loads(str(arrays["facts"])) if "facts" in arrays else {}
            if not isinstance(facts, dict) or not isinstance(facts.get("images", 0), int):
                raise ValueError("its facts are not those of `randcond eval stats`")
    except (KeyError, ValueError, OSError, EOFError, RecursionError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"eval.statistics: {path}: does not hold FID statistics mu and sigma ({error})") from None
    _check_values(path, mean, covariance)
    for name, value in expected.items():
        if facts and facts.get(name) != value:
            raise UserError(
                f"eval.statistics: {path}: was made with {name} {facts.get(name)}, but the evaluation uses {value}; "
                f"make the statistics again with the same settings (`randcond eval stats`), or give other ones"
            )
    return Reference(path, Moments(facts.get("images", 0), mean, covariance), facts)


def _check_headers(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises UserError if an array has another shape, or holds no real numbers. Reads no array: it may be huge."""
    with zipfile.ZipFile(path) as archive:
        for name, expected in shapes.items():
            shape, dtype = _header(archive, f"{name}.npy")
            if shape != expected:
                raise UserError(
                    f"eval.statistics: {path}: {name} is {shape}, expected {expected}, as of {expected[0]} features"
                )
            if dtype.kind not in "fiu":
                raise UserError(f"eval.statistics: {path}: {name} is of type {dtype}, expected real numbers")
        if "facts.npy" in archive.namelist():
            shape, dtype = _header(archive, "facts.npy")
            if shape or dtype.kind != "U" or dtype.itemsize > _MOST_FACTS:
                raise UserError(f"eval.statistics: {path}: facts is {dtype} {shape}, expected a text")


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Returns shape and type of an array in an .npz file. Raises KeyError or ValueError if there is none."""
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    return shape, dtype


def _check_values(path: Path, mean: np.ndarray, covariance: np.ndarray) -> None:
    """Raises UserError if the numbers can't be a mean and a covariance: NaN, infinite, asymmetric, negative."""
    for name, values in (("mu", mean), ("sigma", covariance)):
        if bad := int((~np.isfinite(values)).sum()):
            raise UserError(
                f"eval.statistics: {path}: {name} holds {bad} values that are NaN or infinite; make the statistics "
                f"again from images that can be read"
            )
    largest = np.abs(covariance).max(initial=0.0)
    if np.abs(covariance - covariance.T).max(initial=0.0) > 1e-3 * largest or (np.diag(covariance) < 0).any():
        raise UserError(
            f"eval.statistics: {path}: sigma is no covariance: it must be symmetric, without negative variances"
        )
