"""A stage for tests of launchers: `python -m tests.support.rank_says FOLDER CODE ...`, an exit code for each rank.

Writes FOLDER/RANK with the environment. A rank without a code sleeps until it is ended, a negative code is a signal.
"""

import json
import os
import sys
import time
from pathlib import Path


def main(folder: Path, codes: list[int]) -> int:
    """Returns this rank's exit code."""
    rank = int(os.environ.get("RANK", "0"))
    (folder / f"{rank}.new").write_text(json.dumps({"pid": os.getpid(), **os.environ}))
    (folder / f"{rank}.new").rename(folder / str(rank))
    if rank >= len(codes):
        time.sleep(600)
    if codes[rank] < 0:
        os.kill(os.getpid(), -codes[rank])
    return codes[rank]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), [int(word) for word in sys.argv[2:]]))
