"""The digits world's classifier, as an extractor."""

import torch
from torch import Tensor

from randcond.data.digits.judge import EMBEDDED_JUDGE, Judge
from randcond.eval.images.extractor import Extractor, Features
from randcond.launch.config.sections import Eval
from randcond.model_zoo.checkpoints.fingerprint import folder_fingerprint


def load_judge(ev: Eval, device: torch.device | str) -> Extractor:
    """The digits world's classifier: features judge_read [n, 3] and judge_features [n, 64].

    judge_read holds the predicted class indices of digit, colour and background.
    """
    judge = Judge.load()

    def read(images: Tensor, captions: list[str]) -> Features:
        labels, features = judge.classify(images.float() / 127.5 - 1)
        return {"judge_read": labels.float(), "judge_features": features}

    return Extractor(f"judge {folder_fingerprint(EMBEDDED_JUDGE)}", 0, read)
