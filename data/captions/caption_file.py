"""Captions on disk: an Arrow file, memory-mapped, for O(1) random reads.

Nothing is copied into a process: all processes of a host share the page cache.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from randcond.launch.errors import UserError
from randcond.launch.runtime.files import atomic_write

ROWS_PER_BATCH = 65_536  # of every record batch but the last: a caption's batch follows from its number
_SCHEMA = pa.schema([("caption", pa.string())])


def write_captions(path: Path, captions: Iterable[str]) -> int:
    """Writes captions as one Arrow file, whole; returns how many."""
    return write_arrays(path, (pa.array(list(captions), pa.string()),))


def write_arrays(path: Path, arrays: Iterable[pa.StringArray]) -> int:
    """The same from arrays of any lengths, one after the other."""
    count, held, waiting = 0, 0, []
    with atomic_write(path) as aside, pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:

        def write(captions: pa.StringArray) -> None:
            writer.write_batch(pa.RecordBatch.from_arrays([captions], schema=_SCHEMA))

        for array in arrays:
            count += len(array)
            waiting.append(array)
            held += len(array)
            if held >= ROWS_PER_BATCH:
                joined = pa.concat_arrays(waiting)
                full = held // ROWS_PER_BATCH * ROWS_PER_BATCH
                for start in range(0, full, ROWS_PER_BATCH):
                    write(joined.slice(start, ROWS_PER_BATCH))
                waiting, held = [joined.slice(full)], held - full
        if held:
            write(pa.concat_arrays(waiting))
    return count


def read_arrays(path: Path) -> Iterator[pa.StringArray]:
    """All captions of a file, a record batch at a time and none of it kept: for passes over what memory can't hold."""
    with pa.OSFile(str(path)) as file:
        reader = pa.ipc.open_file(file)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number).column(0)


class Captions:
    """Memory-mapped captions by number."""

    def __init__(self, path: Path, first: int | None = None) -> None:
        """`first`: only so many of them. Raises UserError naming the file when it is missing or damaged."""
        self.path, self.first = path, first
        try:
            column = pa.ipc.open_file(pa.memory_map(str(path))).read_all().column(0)
            self._arrays = [chunk for chunk in column.slice(0, first).chunks if len(chunk)]
            if any(len(array) != ROWS_PER_BATCH or array.offset for array in self._arrays[:-1]):
                raise pa.ArrowInvalid("its record batches are not of one size")
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"captions {path}: cannot be read ({error}); build them again") from None
        # The bytes themselves: three times as fast as asking Arrow for one value.
        self._offsets = [memoryview(array.buffers()[1]).cast("i") for array in self._arrays]
        self._texts = [memoryview(array.buffers()[2] or b"") for array in self._arrays]
        self._count = sum(map(len, self._arrays))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> str:
        """One caption; raises IndexError outside 0 .. len - 1."""
        if not 0 <= index < self._count:
            raise IndexError(index)
        batch, row = divmod(index, ROWS_PER_BATCH)
        offsets = self._offsets[batch]
        return str(self._texts[batch][offsets[row] : offsets[row + 1]], "utf-8")

    def __iter__(self) -> Iterator[str]:
        for array in self._arrays:
            yield from array.to_pylist()

    def arrays(self) -> Iterator[pa.StringArray]:
        """All captions, a record batch at a time."""
        yield from self._arrays

    def __reduce__(self) -> tuple[type["Captions"], tuple[Path, int | None]]:
        return Captions, (self.path, self.first)  # a loader worker maps the file itself
