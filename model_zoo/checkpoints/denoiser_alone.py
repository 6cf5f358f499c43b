"""Published denoisers whose repository lacks the rest of their pipeline: the folder of both together."""

import shutil
import tempfile
from pathlib import Path

from huggingface_hub import constants

PART = "transformer"
REST = {  # hub id of the denoiser -> of the pipeline that has the other parts
    "PixArt-alpha/PixArt-Sigma-XL-2-512-MS": "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
}
FILES = [f"{PART}/config.json", f"{PART}/*.safetensors", f"{PART}/*.safetensors.index.json"]


def put_together(name: str, denoiser: Path, pipeline: Path) -> Path:
    """Returns a diffusers folder of links: the denoiser of one snapshot, the other parts of another.

    `name`: hub id of the denoiser. `denoiser`, `pipeline`: folders of the hub's cache, which have the name of their
    commit. The folder is made once, beside the hub's cache (HF_HOME/randcond). Many processes may make it at once.
    """
    commits = f"{denoiser.name[:12]}-{pipeline.name[:12]}"
    folder = Path(constants.HF_HOME) / "randcond" / f"{name.replace('/', '--')}-{commits}"
    wanted = {path.relative_to(pipeline): path for path in [*pipeline.glob("*.json"), *pipeline.glob("*/*")]}
    wanted = {at: path for at, path in wanted.items() if path.is_file() and at.parts[0] != PART}
    wanted |= {path.relative_to(denoiser): path for path in (denoiser / PART).iterdir() if path.is_file()}
    if all((folder / at).exists() for at in wanted):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent))
    for at, path in wanted.items():
        (made / at).parent.mkdir(exist_ok=True)
        (made / at).symlink_to(path.resolve())
    shutil.rmtree(folder, ignore_errors=True)  # of links to files that are no longer in the hub's cache
    try:
        made.rename(folder)
    except OSError:  # another process was faster
        shutil.rmtree(made, ignore_errors=True)
        if not all((folder / at).exists() for at in wanted):
            raise
    return folder
