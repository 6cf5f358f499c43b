"""Removes truncated libraries that a killed compilation left in Inductor's cache.

The linker writes to the final path, and Inductor assumes that an existing file is complete. Without this clean-up,
every later run on the machine fails: a truncated kernel does not load. If the truncated library is Inductor's probe of
the CPU's vector units, Inductor compiles without vector units, which fails too.
"""

import fcntl
from pathlib import Path


def remove_truncated_libraries() -> list[Path]:
    """Removes truncated libraries and returns their paths. Inductor then builds them again.

    Skips libraries that another process is building.
    """
    from torch._inductor.codecache import cache_dir, get_lock_dir  # takes 2 s, so only runs that compile import it

    removed = []
    for library in Path(cache_dir()).glob("*/*.so"):
        if not is_truncated(library):
            continue
        with open(
            Path(get_lock_dir()) / f"{library.name.split('.')[0]}.lock", "a"
        ) as lock:  # Inductor holds it while building
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            if is_truncated(library):
                library.unlink(missing_ok=True)
                removed.append(library)
    return removed


def is_truncated(library: Path) -> bool:
    """Returns True if a shared library is truncated: empty, without a header, or shorter than its header says.

    The linker writes the section table last, at the end of the file. The header holds the table's position and is all
    zeros until then (System V ABI, ELF header: e_shoff, e_shentsize, e_shnum). The length is checked only for 64-bit
    ELF files. Returns False if the file does not exist.
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
