"""Measures the time of every `--help`, on the clock and of the CPU: `python -m tests.support.help_times`.

Each is the best of three. The clock's is right on an idle machine only.
"""

import os
import subprocess
import sys
import time

from randcond.launch.cli import GROUPS, TOOLS
from randcond.launch.command_stubs import commands_of


def commands() -> list[list[str]]:
    """Returns the words of every command that has a help."""
    inner = [[group, name] for group, module in GROUPS.items() for name in commands_of(module)]
    return [[], ["run"], ["launch"], *([name] for name in TOOLS), *([name] for name in GROUPS), *inner]


def seconds(words: list[str]) -> tuple[float, float]:
    """Returns the seconds that a command's help takes: on the clock, and of the CPU."""
    clock, cpu = [], []
    for _ in range(3):
        began, before = time.monotonic(), os.times()
        subprocess.run([sys.executable, "-m", "randcond.launch.cli", *words, "--help"], check=True, capture_output=True)
        after = os.times()
        clock.append(time.monotonic() - began)
        cpu.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return min(clock), min(cpu)


if __name__ == "__main__":
    for words in commands():
        clock, cpu = seconds(words)
        print(f"{clock:5.2f} s, {cpu:.2f} s of the CPU  randcond {' '.join([*words, '--help'])}", flush=True)
