"""Takes the pictures of docs/gallery.md from a finished demo: `make gallery`. Needs Debian's package chromium.

In: the folder of a finished `make demo` (runs/demo). Out: WebP pictures in docs/gallery.
"""

import io
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

WIDTH = 1300  # pixels of the window
QUALITY = 82


def screenshot(url: str, out: Path, height: int, dark: bool = False, width: int = WIDTH) -> None:
    """Saves what a browser shows of a page. height, width: of the window, in pixels."""
    with tempfile.TemporaryDirectory() as folder:
        png = Path(folder) / "page.png"
        command = [
            "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--user-data-dir={folder}/profile", f"--window-size={width},{height}", "--virtual-time-budget=20000",
            f"--screenshot={png}", *(["--blink-settings=preferredColorScheme=0"] if dark else []), url,
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=180)
        save(Image.open(png), out)


def save(picture: Image.Image, out: Path) -> None:
    """Saves a picture as WebP and prints its size."""
    out.parent.mkdir(parents=True, exist_ok=True)
    data = io.BytesIO()
    picture.convert("RGB").save(data, "webp", quality=QUALITY, method=6)
    out.write_bytes(data.getvalue())
    print(f"{out}: {picture.width} x {picture.height}, {len(data.getvalue()) / 1000:.0f} KB")


@contextmanager
def tensorboard(runs: Path) -> Iterator[str]:
    """Runs TensorBoard on the runs' folder, and yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/data/runs", timeout=5).read()
                break
            except OSError:
                time.sleep(0.5)
        time.sleep(5)  # it reads the runs in the background
        yield address
    finally:
        process.terminate()
        process.wait()


def take(runs: Path, out: Path) -> None:
    """Takes every picture of the gallery."""
    report = (runs / "report.html").absolute().as_uri()
    screenshot(report, out / "report.webp", 2600)
    screenshot(report, out / "report-dark.webp", 1100, dark=True)
    screenshot(report, out / "report-narrow.webp", 1400, width=500)
    with tensorboard(runs) as address:
        screenshot(f"{address}/#custom_scalars", out / "tensorboard-scalars.webp", 900)
        screenshot(f"{address}/#images", out / "tensorboard-images.webp", 900)
    last = max((runs / "with" / "grids").glob("step-*.png"))
    save(Image.open(last), out / "grid.webp")


if __name__ == "__main__":
    if not shutil.which("chromium"):
        sys.exit("error: chromium is missing; Debian: apt install chromium")
    take(Path(sys.argv[1]), Path(sys.argv[2]))
