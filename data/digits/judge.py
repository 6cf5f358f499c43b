"""The judge of the digits world: a small classifier of digit, colour and background, and a feature extractor.

In: images [n, 3, 32, 32] in [-1, 1]. Out: class indices [n, 3] and features [n, 64] for a Frechet distance.
The judge replaces the CLIP score and Inception of the full-size evaluation. It is trained on real handwriting only.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from randcond.data.digits.world import BACKGROUNDS, COLOURS, DIGITS
from randcond.launch.errors import UserError

EMBEDDED_JUDGE = Path(__file__).parent / "models" / "judge"
FEATURE_WIDTH = 64


class Judge(nn.Module):
    """Convolutional classifier with three heads on one feature vector."""

    def __init__(self) -> None:
        super().__init__()

        def block(width_in: int, width_out: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(width_in, width_out, 3, padding=1), nn.BatchNorm2d(width_out), nn.ReLU(), nn.MaxPool2d(2)
            )

        self.trunk = nn.Sequential(block(3, 32), block(32, 64), block(64, 64))
        self.features = nn.Linear(64 * 4 * 4, FEATURE_WIDTH)
        self.heads = nn.ModuleList(nn.Linear(FEATURE_WIDTH, n) for n in (len(DIGITS), len(COLOURS), len(BACKGROUNDS)))

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Returns logits [n, 10], [n, 8], [n, 8] and features [n, 64] of images [n, 3, 32, 32] in [-1, 1]."""
        features = self.features(self.trunk(images).flatten(1))  # [n, 64]
        hidden = F.relu(features)
        return [head(hidden) for head in self.heads], features

    @torch.no_grad()
    def classify(self, images: Tensor, batch: int = 256) -> tuple[Tensor, Tensor]:
        """Returns the predicted labels [n, 3] and the features [n, 64] of images [n, 3, 32, 32] in [-1, 1].

        Labels are the indices of digit, colour and background. `batch` images are classified at once.
        """
        labels, features = [], []
        for part in images.split(batch):
            logits, feature = self(part)
            labels.append(torch.stack([head.argmax(1) for head in logits], dim=1))
            features.append(feature)
        return torch.cat(labels), torch.cat(features)

    def save(self, folder: Path) -> None:
        """Writes judge.safetensors and config.json into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / "judge.safetensors")
        config = {"digits": DIGITS, "colours": list(COLOURS), "backgrounds": list(BACKGROUNDS)}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path = EMBEDDED_JUDGE) -> "Judge":
        """Loads a trained judge, frozen and in eval mode. Raises UserError naming the file if it is missing."""
        path = folder / "judge.safetensors"
        if not path.is_file():
            raise UserError(f"no judge at {path}: train it with `make digits-teacher`")
        judge = cls()
        judge.load_state_dict(load_file(path))
        return judge.eval().requires_grad_(False)
