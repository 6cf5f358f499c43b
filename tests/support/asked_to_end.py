"""Runs the training stage as if a preemption request had come before its first step."""

from randcond.launch.runtime.entry_point import stage_main
from randcond.train import loop
from randcond.train.__main__ import check, train

if __name__ == "__main__":
    loop.Preemption.requested = lambda self: True
    stage_main({"train": (check, train)})
