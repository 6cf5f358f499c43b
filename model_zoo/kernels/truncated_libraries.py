"""Libraries of Inductor's cache that a killed compilation left half written.

A linker writes where the file is to be, and Inductor takes a file that is there for whole: every later start on that
machine fails, on loading a kernel or, where it was the probe of the CPU's vector units, on compiling without them.
"""

import fcntl
from pathlib import Path


def remove_truncated_libraries() -> list[Path]:
    """Removes them, for Inductor to build again, and says which; what another process builds just now is left alone."""
    from torch._inductor.codecache import cache_dir, get_lock_dir  # 2 s, which only a start that compiles waits for

    removed = []
    for library in Path(cache_dir()).glob("*/*.so"):
        if not is_truncated(library):
            continue
        with open(Path(get_lock_dir()) / f"{library.name.split('.')[0]}.lock", "a") as lock:  # held while it is built
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            if is_truncated(library):
                library.unlink(missing_ok=True)
                removed.append(library)
    return removed


def is_truncated(library: Path) -> bool:
    """Whether a shared library ends before its last part does; of other formats than 64-bit ELF: whether it is empty.

    A linker writes the table of sections last, at the end of the file; where it lies, a header says that until then
    is all zeros (System V ABI, ELF header: e_shoff, e_shentsize, e_shnum).
    """
    try:
        with library.open("rb") as file:
            header = file.read(64)
        size = library.stat().st_size
    except FileNotFoundError:
        return False
    if not any(header):
        return True
    if header[:5] != b"\x7fELF\x02":
        return False
    start, entry, count = (int.from_bytes(header[at:to], "little") for at, to in ((40, 48), (58, 60), (60, 62)))
    return len(header) < 64 or start == 0 or size < start + entry * count
