"""The settings of the text encoders, as an experiment's `teacher:` section gives them."""

from dataclasses import dataclass
from pathlib import Path

from randcond.launch.errors import UserError
from randcond.model_zoo.families.base.family import Family


@dataclass(frozen=True)
class TextOptions:
    """How captions are tokenized and encoded."""

    tokens: int | None = None  # length of the text, where the pipeline leaves it open; None: its default
    dtype: str | None = None  # of the text encoders' weights: int8 or int8_dynamic; None: as the teacher's dtype says
    offload: bool = False  # their weights stay in the host's memory
    buckets: bool | None = None  # encode captions of similar length together; None: where the family masks its text
    cache_gb: float = 0.0  # host memory for the conditions of captions that were seen before


def check_buckets(buckets: bool | None, family: Family, teacher: Path | str) -> None:
    """Raises UserError if captions are to be encoded in length buckets, but the teacher sees their padding."""
    if buckets and not family.masked:
        raise UserError(
            f"teacher.text_buckets: {teacher} does not mask its text: the padding changes its predictions, so captions "
            f"can't be encoded without it; use teacher.text_buckets=null"
        )
