"""TensorBoard: event files in the run's folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import yaml
from PIL import Image

from randcond.launch.runtime.files import naming_full_disk
from randcond.train.sinks.sink import RunFacts, Sink

# The tab "Custom scalars": chart -> names of values, as regular expressions. The loss comes first.
LAYOUT = {
    "training": {
        "loss": ["Multiline", ["^loss/total$"]],
        "terms of the loss": ["Multiline", ["^loss/(?!total$)"]],
        "gradient norm": ["Multiline", ["^grad_norm$"]],
        "learning rate": ["Multiline", ["^lr$"]],
    },
    "by timestep": {
        "loss": ["Multiline", ["^loss_by_timestep/"]],
        "share of captions replaced": ["Multiline", ["^replaced_share$", "^replaced_by_timestep/"]],
    },
    "evaluations": {"scores": ["Multiline", ["^eval/"]]},
    "speed": {
        "samples per second": ["Multiline", ["^samples_per_s"]],
        "of the peak (MFU)": ["Multiline", ["^mfu$"]],
        "share of time spent waiting for data": ["Multiline", ["^data_wait$"]],
        "memory, GB": ["Multiline", ["^memory_gb$"]],
    },
}


class TensorBoardSink(Sink):
    """Writes event files. What an earlier process wrote after the step that the run resumes from is not shown."""

    name: ClassVar[str] = "tensorboard"

    def __init__(self, facts: RunFacts) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder = facts.folder / "tensorboard"
        self.writer = SummaryWriter(str(self.folder), purge_step=facts.first + 1)
        with naming_full_disk(self.folder):
            self.writer.add_custom_scalars(LAYOUT)
            text = yaml.safe_dump(dict(facts.configuration), sort_keys=False, allow_unicode=True)
            self.writer.add_text("configuration", f"```yaml\n{text}```", facts.first)

    def values(self, step: int, values: Mapping[str, float]) -> None:
        with naming_full_disk(self.folder):
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, path: Path) -> None:
        with Image.open(path) as file:
            pixels: Any = np.array(file.convert("RGB"))
        with naming_full_disk(self.folder):
            self.writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self, finished: bool) -> None:
        with naming_full_disk(self.folder):
            self.writer.close()
