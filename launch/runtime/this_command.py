"""The command that this process belongs to: for messages that say which command helps, or how to go on."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from randcond.launch.urls import hide_secrets

_experiment: list[str] = []  # the experiment of this process and its overrides, as they were given
_words: list[str] = []  # the whole command line behind `randcond`


def remember_experiment(experiment: str, overrides: Sequence[str]) -> None:
    """Notes the experiment that this process works on, with its overrides."""
    _experiment[:] = [experiment, *overrides]


def remember_words(words: Sequence[str]) -> None:
    """Notes the command line of this process, without `randcond`."""
    _words[:] = words


def this_command() -> str:
    """Returns the command line of this process, for a shell."""
    return _shown(["randcond", *_words])


def stage_command(stage: str, artefact: Path | None = None) -> str:
    """Returns the command that runs a stage of the experiment of this process, in backquotes.

    `artefact`: a folder that this experiment, or another one, has made. A tool that works on a folder has no
    experiment. Then the configuration beside the artefact stands for it.
    """
    if _experiment:
        return command_of(stage, *_experiment)
    if artefact and (artefact / "config.yaml").is_file():
        return command_of(stage, str(artefact / "config.yaml"))
    return f"`randcond run {stage} EXPERIMENT` (the experiment that made it)"


def command_of(stage: str, experiment: str, *overrides: str) -> str:
    """Returns the command that runs a stage of an experiment, in backquotes."""
    return f"`{_shown(['randcond', 'run', stage, experiment, *overrides])}`"


def _shown(words: Sequence[str]) -> str:
    return hide_secrets(shlex.join(words))
