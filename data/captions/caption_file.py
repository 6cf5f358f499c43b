"""Captions on disk: a memory-mapped Arrow file with O(1) random access.

All processes of a host share the file's pages in memory.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from randcond.launch.errors import UserError
from randcond.launch.runtime.files import atomic_write
from randcond.launch.runtime.this_command import stage_command

ROWS_PER_BATCH = 65_536  # of every record batch except the last, so a caption's number gives its batch
_SCHEMA = pa.schema([("caption", pa.string())])


def write_captions(path: Path, captions: Iterable[str]) -> int:
    """Writes captions to an Arrow file atomically. Returns the number of captions."""
    return write_arrays(path, (pa.array(list(captions), pa.string()),))


def write_arrays(path: Path, arrays: Iterable[pa.StringArray]) -> int:
    """Writes the captions in Arrow arrays of any length to an Arrow file atomically. Returns the number of captions."""
    count, buffered, buffer = 0, 0, []
    with (
        atomic_write(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, _SCHEMA) as writer,
    ):

        def write(captions: pa.StringArray) -> None:
            writer.write_batch(pa.RecordBatch.from_arrays([captions], schema=_SCHEMA))

        for array in arrays:
            count += len(array)
            buffer.append(array)
            buffered += len(array)
            if buffered >= ROWS_PER_BATCH:
                joined = pa.concat_arrays(buffer)
                full = buffered // ROWS_PER_BATCH * ROWS_PER_BATCH
                for start in range(0, full, ROWS_PER_BATCH):
                    write(joined.slice(start, ROWS_PER_BATCH))
                buffer, buffered = [joined.slice(full)], buffered - full
        if buffered:
            write(pa.concat_arrays(buffer))
    return count


def read_arrays(path: Path) -> Iterator[pa.StringArray]:
    """Yields all captions of a file, one record batch at a time. For files that are too large for memory."""
    with pa.OSFile(str(path)) as file:
        reader = pa.ipc.open_file(file)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number).column(0)


class Captions:
    """Random access to the captions of a memory-mapped file, by caption number."""

    def __init__(self, path: Path, first: int | None = None) -> None:
        """`first`: number of captions to use from the start of the file; None: all.

        Raises UserError if the file is missing or damaged.
        """
        self.path, self.first = path, first
        try:
            column = pa.ipc.open_file(pa.memory_map(str(path))).read_all().column(0)
            self._arrays = [chunk for chunk in column.slice(0, first).chunks if len(chunk)]
            if any(len(array) != ROWS_PER_BATCH or array.offset for array in self._arrays[:-1]):
                raise pa.ArrowInvalid("its record batches differ in size")
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"captions {path}: cannot be read ({error}); of a cache: {stage_command('cache', path.parent)} writes "
                f"them again from the sources; of a pool: remove this file, then {stage_command('pool', path.parent)} "
                f"builds it"
            ) from None
        # Reading the buffers directly is three times as fast as Arrow's access to one value.
        self._offsets = [memoryview(array.buffers()[1]).cast("i") for array in self._arrays]
        self._texts = [memoryview(array.buffers()[2] or b"") for array in self._arrays]
        self._count = sum(map(len, self._arrays))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> str:
        """Returns one caption. Raises IndexError if `index` is not in 0 .. len - 1."""
        if not 0 <= index < self._count:
            raise IndexError(index)
        batch, row = divmod(index, ROWS_PER_BATCH)
        offsets = self._offsets[batch]
        return str(self._texts[batch][offsets[row] : offsets[row + 1]], "utf-8")

    def __iter__(self) -> Iterator[str]:
        for array in self._arrays:
            yield from array.to_pylist()

    def arrays(self) -> Iterator[pa.StringArray]:
        """Yields all captions, one record batch at a time."""
        yield from self._arrays

    def __reduce__(self) -> tuple[type["Captions"], tuple[Path, int | None]]:
        return Captions, (self.path, self.first)  # each loader worker maps the file again
