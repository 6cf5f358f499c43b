"""Whether what earlier commands made matches an experiment, as far as the settings alone can tell."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from randcond.data.cache.cache_plan import check_kept_cache
from randcond.data.captions.pool import check_pool_identity
from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError
from randcond.launch.runtime.artefacts import check_matches
from randcond.launch.runtime.files import read_record
from randcond.train.state.identity import ABSENT, comparable, how_to_go_on, run_settings


def check_kept(config: Config) -> None:
    """Raises UserError if the experiment's cache, pool or run was made with other settings.

    The stages compare more: the teacher and the data themselves. This check reads small files only, so it comes before
    any work.
    """
    check_kept_cache(config)
    if (Path(config.paths.pool) / "manifest.json").is_file():
        check_pool_identity(config)
    folder = Path(config.paths.run)
    identity = _stored_identity(folder)
    if identity is None:
        return
    settings = run_settings(config)
    if config.engine.teacher_fp8:  # it then depends on the number of ranks
        del settings["precision"]
    stored, wanted = comparable(identity, settings)
    check_matches(stored, wanted, f"the run at {folder}", how_to_go_on(config), ABSENT)


def _stored_identity(run: Path) -> dict[str, Any] | None:
    """Returns the identity of a finished run, or that of its newest checkpoint; None if it has neither."""
    checkpoints = sorted(run.glob("checkpoints/step-*/manifest.json"), reverse=True)
    for path in (run / "train.json", *checkpoints):
        with suppress(UserError):  # the training passes over a damaged checkpoint
            if path.is_file():
                found: dict[str, Any] = read_record(path, "identity")["identity"]
                return found
    return None
