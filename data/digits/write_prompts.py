"""Writes the embedded world's second caption list: prompts about each digit, in other words than its captions.

`python -m randcond.data.digits.write_prompts data/digits/prompts.txt` makes what ships. It plays the part of a language
model's prompts (Table 3, supplement A): as many for each noun, strictly distinct, of another distribution than the
captions that students are evaluated with.
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
    """`per_noun` distinct prompts about each of the ten digits, in their order."""
    random = np.random.default_rng(seed)
    found = []
    for digit in DIGITS:
        every = [
            form.format(digit=digit, colour=colour, background=background)
            for form, colour, background in product(FORMS, COLOURS, BACKGROUNDS)
        ]
        found += [every[index] for index in sorted(random.permutation(len(every))[:per_noun].tolist())]
    return found


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), "\n".join(prompts()) + "\n")
