"""Soft-TIFA (arXiv:2512.16853): scores of images by the probabilities of the correct answers to their questions.

In: prompts with questions, and a probability for each question. Out: shares in [0, 1].
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from randcond.eval.geneval2.questions import SKILLS, Item


def arithmetic_mean(probabilities: Sequence[float]) -> float:
    """Returns Soft-TIFA AM of an image: how much of what its prompt asks for is there."""
    return sum(probabilities) / len(probabilities)


def geometric_mean(probabilities: Sequence[float]) -> float:
    """Returns Soft-TIFA GM of an image: whether all that its prompt asks for is there; 0 if one probability is 0."""
    values = torch.tensor(probabilities, dtype=torch.float64)
    return float(values.log().mean().exp())


def soft_tifa(
    items: Sequence[Item], probabilities: Sequence[Sequence[float]]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the scores of a benchmark, and the values of its prompts [n] of which two of them are the means.

    probabilities: of the correct answer to each question of each prompt.
    """
    values = {
        "geneval2": torch.tensor(list(map(geometric_mean, probabilities)), dtype=torch.float64),
        "geneval2_am": torch.tensor(list(map(arithmetic_mean, probabilities)), dtype=torch.float64),
    }
    scores: dict[str, Any] = {name: float(each.mean()) for name, each in values.items()}
    by_skill: dict[str, list[float]] = {skill: [] for skill in SKILLS}
    by_atoms: dict[int, list[float]] = {}
    for item, found, whole in zip(items, probabilities, values["geneval2"].tolist(), strict=True):
        by_atoms.setdefault(item.atoms, []).append(whole)
        for question, probability in zip(item.questions, found, strict=True):
            by_skill[question.skill].append(probability)
    scores["geneval2_skills"] = {skill: arithmetic_mean(found) for skill, found in by_skill.items() if found}
    scores["geneval2_atoms"] = {str(atoms): arithmetic_mean(by_atoms[atoms]) for atoms in sorted(by_atoms)}
    return scores, values
