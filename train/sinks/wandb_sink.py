"""Weights & Biases. Offline with WANDB_MODE=offline; `wandb sync` uploads such a run later."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import psutil

from randcond.launch.errors import UserError
from randcond.train.sinks.known_runs import known_run, remember_run
from randcond.train.sinks.sink import RunFacts, Sink
from randcond.train.sinks.wandb_file import last_step

_PATIENCE = 30.0  # seconds for the service to answer


def is_offline() -> bool:
    """Returns True if W&B works offline: by WANDB_MODE, or by its own settings."""
    import wandb

    return wandb.setup(wandb.Settings(silent=True)).settings.mode in ("offline", "dryrun", "disabled")


def check_wandb() -> None:
    """Raises UserError if the service will want a key, and there is none."""
    import wandb

    if not is_offline() and not wandb.login(prompt=False, verify=False):
        raise UserError(
            "watch.sinks: wandb has no key: run `wandb login`, set WANDB_API_KEY, or work offline with "
            "WANDB_MODE=offline"
        )


class WandbSink(Sink):
    """Logs to a run of W&B, which a resumed training continues."""

    name: ClassVar[str] = "wandb"

    def __init__(self, facts: RunFacts) -> None:
        import wandb

        self.facts = facts
        known = known_run(facts.folder, self.name)
        held = last_step(facts.folder, known) if known and is_offline() else 0
        self.run = wandb.init(
            project=facts.project,
            name=facts.name,
            id=known,
            resume="allow",
            dir=str(facts.folder),
            config=dict(facts.configuration),
            settings=wandb.Settings(console="off", silent=True, init_timeout=_PATIENCE),
        )
        remember_run(facts.folder, self.name, self.run.id)
        # Online, W&B knows the last step of a run that it resumes.
        self.sent = held if is_offline() else max(self.run.step - 1, 0)
        for step, values in facts.history():
            self.values(step, values)

    def values(self, step: int, values: Mapping[str, float]) -> None:
        if self.facts.is_new(step, values, self.sent):
            self.run.log(dict(values), step=max(step, self.run.step))  # W&B drops what is before its current step

    def picture(self, step: int, name: str, path: Path) -> None:
        import wandb

        if step > self.sent:
            self.run.log({name: wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        self.run.finish()

    @staticmethod
    def abandon() -> None:
        """Ends W&B's own process, for which Python would wait at its exit, however long the service is down."""
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if "wandb-core" in child.name():
                    child.kill()
