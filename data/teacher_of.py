"""Loads the teacher of an experiment."""

from randcond.launch.config.paths import resolve_path
from randcond.launch.config.sections import Config
from randcond.launch.runtime.ranks import device
from randcond.model_zoo.teacher import Teacher
from randcond.model_zoo.text_encoding.options import TextOptions


def load_teacher(config: Config) -> Teacher:
    """Loads the experiment's teacher on this rank's device. Raises UserError as Teacher.load() does."""
    of = config.teacher
    return Teacher.load(resolve_path(of.path), of.dtype, device(), text_options(config))


def text_options(config: Config) -> TextOptions:
    """Returns the experiment's settings of the text encoders."""
    of = config.teacher
    return TextOptions(
        tokens=of.text_tokens,
        dtype=of.text_dtype,
        offload=of.text_device == "cpu",
        buckets=of.text_buckets,
        cache_gb=of.text_cache_gb,
    )
