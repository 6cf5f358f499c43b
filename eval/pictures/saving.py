"""Saves figures of matplotlib without a display."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from randcond.launch.runtime.files import atomic_write

DPI = 120


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as a PNG file (atomic write)."""
    FigureCanvasAgg(figure)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")
