"""Weights & Biases. Offline with WANDB_MODE=offline; `wandb sync` uploads such a run later."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import psutil

from randcond.launch.errors import UserError
from randcond.train.sinks.known_runs import known_run, remember_run
from randcond.train.sinks.sink import RunFacts, Sent, Sink
from randcond.train.sinks.wandb_file import sent_offline

_PATIENCE = 30.0  # seconds for the service to answer


def is_offline() -> bool:
    """Returns True if W&B works offline: by WANDB_MODE, or by its own settings."""
    import wandb

    return wandb.setup(wandb.Settings(silent=True)).settings.mode in ("offline", "dryrun", "disabled")


def check_wandb() -> None:
    """Raises UserError if the service will want a key, and there is none."""
    import wandb

    try:
        known = is_offline() or wandb.login(prompt=False, verify=False)
    except wandb.errors.Error as error:
        raise UserError(f"watch.sinks: wandb: {error}; see WANDB_API_KEY, or set WANDB_MODE=offline") from None
    if not known:
        raise UserError(
            "watch.sinks: wandb has no key: run `wandb login`, set WANDB_API_KEY, or work offline with "
            "WANDB_MODE=offline"
        )


class WandbSink(Sink):
    """Logs to a run of W&B, which a resumed training continues."""

    name: ClassVar[str] = "wandb"

    def __init__(self, facts: RunFacts) -> None:
        import wandb

        self.folder, known = facts.folder, known_run(facts.folder, self.name)
        sent = sent_offline(facts.folder, known) if known and is_offline() else Sent()
        self.run = wandb.init(
            project=facts.project,
            name=facts.name,
            id=known,
            resume="allow",
            dir=str(facts.folder),
            config=dict(facts.configuration),
            # Its metadata would hold the command line, with whatever secrets are in it.
            settings=wandb.Settings(console="off", silent=True, init_timeout=_PATIENCE, x_disable_meta=True),
        )
        remember_run(facts.folder, self.name, self.run.id)
        if not is_offline():  # W&B knows the last step of a run that it resumes
            last = max(self.run.step - 1, 0)
            sent = Sent(last, last, last)
        self.sent = sent
        for step, values in facts.history:
            self.values(step, values)

    def values(self, step: int, values: Mapping[str, float]) -> None:
        if self.sent.takes(step, values):
            self.run.log(dict(values), step=max(step, self.run.step))  # W&B drops what is before its current step

    def picture(self, step: int, name: str, path: Path) -> None:
        import wandb

        if self.sent.takes_picture(step):
            self.run.log({name: wandb.Image(str(path))}, step=max(step, self.run.step))

    def close(self, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)

    @staticmethod
    def abandon() -> None:
        """Ends W&B's own process, for which Python would wait at its exit, however long the service is down."""
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if "wandb-core" in child.name():
                    child.kill()
