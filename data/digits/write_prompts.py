"""Writes the second caption list of the digits world: prompts for each digit, phrased differently from its captions.

`python -m randcond.data.digits.write_prompts data/digits/prompts.txt` reproduces the shipped file. The list replaces
the prompts of a language model (Table 3, supplement A). Each noun has the same number of prompts, all prompts are
distinct, and their distribution differs from that of the evaluation captions.
"""

import sys
from itertools import product
from pathlib import Path

import numpy as np

from randcond.data.digits.world import BACKGROUNDS, COLOURS, DIGITS
from randcond.launch.runtime.files import write_text

PER_NOUN, SEED = 128, 0
FORMS = (
    "{digit} in {colour} ink , {background} background",
    "a handwritten {colour} {digit} on {background} paper",
    "the {colour} digit {digit} , {background}",
    "{background} background with the digit {digit} in {colour}",
    "{colour} {digit} , {background} paper",
    "handwritten digit {digit} in {colour} , on {background}",
    "{background} paper , {digit} in {colour} ink",
    "{digit} , a {colour} digit on {background} paper",
)


def prompts(per_noun: int = PER_NOUN, seed: int = SEED) -> list[str]:
    """Returns `per_noun` distinct random prompts for each of the ten digits, ordered by digit."""
    random = np.random.default_rng(seed)
    chosen: list[str] = []
    for digit in DIGITS:
        candidates = [
            form.format(digit=digit, colour=colour, background=background)
            for form, colour, background in product(FORMS, COLOURS, BACKGROUNDS)
        ]
        chosen += [candidates[index] for index in sorted(random.permutation(len(candidates))[:per_noun].tolist())]
    return chosen


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), "\n".join(prompts()) + "\n")
