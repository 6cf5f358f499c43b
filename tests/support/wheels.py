"""Writes wheels: tiny ones that hold nothing but their metadata, and installed packages packed again."""

import base64
import hashlib
import zipfile
from importlib.metadata import distribution
from pathlib import Path


def tiny(index: Path, name: str, version: str, *requires: str) -> None:
    """Writes an empty package as a wheel into INDEX/NAME, as a package index has it.

    `requires`: its requirements.
    """
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    files = {
        f"{module}/__init__.py": b"",
        f"{info}/METADATA": "\n".join([*lines, *(f"Requires-Dist: {each}" for each in requires), ""]).encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    _write(index / name / f"{module}-{version}-py3-none-any.whl", files, info)


def packed(index: Path, name: str) -> str:
    """Packs an installed package of pure Python as a wheel into INDEX/NAME. Returns its version."""
    found = distribution(name)
    kept = [file for file in found.files or [] if ".." not in file.parts and file.suffix != ".pyc"]
    info = next(file.parts[0] for file in kept if file.name == "METADATA")
    files = {
        str(file): Path(str(file.locate())).read_bytes() for file in kept if file.name not in ("RECORD", "REQUESTED")
    }
    _write(index / name / f"{name}-{found.version}-py3-none-any.whl", files, info)
    return found.version


def _write(path: Path, files: dict[str, bytes], info: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    record = []
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(content)}")
        wheel.writestr(f"{info}/RECORD", "\n".join([*record, f"{info}/RECORD,,", ""]))
