"""An environment with older libraries: this one's, but with diffusers 0.35 and transformers 4.57 in front."""

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parents[2]
PACKAGES = ["diffusers==0.35.2", "transformers==4.57.3", "huggingface_hub==0.36.0", "tokenizers==0.22.1"]


def environment() -> dict[str, str]:
    """Returns the environment variables with which Python imports the older libraries.

    They are installed once, with pip, into build/older-libraries, which git ignores.
    """
    folder = ROOT / "build" / "older-libraries" / "-".join(each.partition("==")[2] for each in PACKAGES)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            unfinished = Path(tempfile.mkdtemp(dir=folder.parent))
            pip = [sys.executable, "-m", "pip", "install"]
            if find_spec("pip") is None:  # an environment that uv made
                pip = ["uv", "pip", "install", "--python", sys.executable]
            command = [*pip, "--quiet", "--no-deps", "--target", str(unfinished), *PACKAGES]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                shutil.rmtree(unfinished)
            assert done.returncode == 0, done.stderr
            unfinished.rename(folder)
    return {**os.environ, "PYTHONPATH": str(folder)}
