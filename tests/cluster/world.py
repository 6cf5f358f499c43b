"""The training that the cluster tests run: the demo's arm with one rank per host."""

from tests.support.demo import TINY

STEPS = 60
WORDS = [
    *TINY,
    f"train.steps={STEPS}",
    "train.checkpoint_every=10",
    "train.sample_every=0",
    "engine.processes=1",  # per host
]
ONE_HOST = "runs/demo/with"  # the students of the cluster tests are compared with this run's
