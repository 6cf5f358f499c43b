"""Opens the sinks of `watch.sinks`, and checks them before any work."""

from functools import partial

from randcond.launch.config.sections import Config
from randcond.launch.install.extras import need
from randcond.train.sinks.mlflow_sink import MlflowSink, check_mlflow
from randcond.train.sinks.sink import RunFacts, Sink
from randcond.train.sinks.tensorboard_sink import TensorBoardSink
from randcond.train.sinks.tracker import Tracker
from randcond.train.sinks.wandb_sink import WandbSink, check_wandb

TRACKERS: dict[str, type[WandbSink] | type[MlflowSink]] = {kind.name: kind for kind in (WandbSink, MlflowSink)}


def check_sinks(config: Config) -> None:
    """Raises UserError if the package of a sink is not installed, or if its service wants a key and there is none."""
    if "mlflow" in config.watch.sinks:
        need("mlflow", "watch.sinks: mlflow")
        check_mlflow()
    if "wandb" in config.watch.sinks:
        need("wandb", "watch.sinks: wandb")
        check_wandb()


def open_sinks(config: Config, facts: RunFacts) -> list[Sink]:
    """Opens the sinks of an experiment. Only rank 0 may call it."""
    opened: list[Sink] = []
    for name in dict.fromkeys(config.watch.sinks):
        if name in TRACKERS:
            opened.append(Tracker(name, partial(TRACKERS[name], facts), TRACKERS[name].abandon))
        else:
            opened.append(TensorBoardSink(facts))
    return opened
