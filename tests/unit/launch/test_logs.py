"""Which of a rank's words the console shows, and on which of its two outputs: a process each."""

import subprocess
import sys
from pathlib import Path

import pytest

_RANK = """
import sys, time
from pathlib import Path
from randcond.launch.runtime.logs import log_to, say_everywhere
log_to(Path("rank.log"), show=sys.argv[1] == "0")
print("a line")
say_everywhere("done")
for number in range(int(sys.argv[2])):
    print(f"between {number}")
    say_everywhere(f"error: {number}", error=True)
    time.sleep(0.01)  # the mirror's thread wakes up in between
print("the end")
say_everywhere("bye")
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_ranks_errors_are_on_the_standard_error_and_nowhere_else(rank: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _RANK, str(rank), "50"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    errors, between = ([f"{word} {number}" for number in range(50)] for word in ("error:", "between"))
    assert done.stderr.splitlines() == errors
    everything = [line for pair in zip(between, errors, strict=True) for line in pair]
    assert (tmp_path / "rank.log").read_text().splitlines() == ["a line", "done", *everything, "the end", "bye"]
    shown = ["a line", "done", *between, "the end", "bye"] if rank == 0 else ["done", "bye"]
    assert done.stdout.splitlines() == shown
