"""Truncated libraries of a killed compilation are removed and built again by the next one."""

from pathlib import Path

import pytest
from filelock import FileLock

from randcond.model_zoo.kernels.truncated_libraries import is_truncated, remove_truncated_libraries
from tests.support import warm
from tests.support.compiling import NARROW

COMPILES = f"""
import torch
{NARROW}
from randcond.model_zoo.kernels.compilation import compile_network

class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x):
        return torch.nn.functional.silu(self.linear(x))

network = Network()
compile_network(network, "whole")
network(torch.ones(2, 8))
"""


def compile_once() -> None:
    done = warm.run_code(COMPILES)
    assert done.returncode == 0, done.stderr


@pytest.mark.heavy
def test_half_written_libraries_of_a_killed_compilation_are_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_DEBUG_COMPILE", "1")  # without optimisation: compiles faster
    compile_once()
    whole = {path: path.read_bytes() for path in tmp_path.glob("*/*.so")}
    kernel = next(path for path in whole if path.name.endswith(".main.so"))
    assert not any(is_truncated(path) for path in whole)

    for path, was in whole.items():  # as a killed linker leaves them
        path.write_bytes(bytes(len(was) // 2))  # the header, which is written last, is still zeros
        assert is_truncated(path)
        for length in (len(was) - 1, len(was) // 2, 64, 10, 0):
            path.write_bytes(was[:length])
            assert is_truncated(path), f"{path.name}: {length} of {len(was)} bytes"

    with FileLock(tmp_path / "locks" / f"{kernel.name.split('.')[0]}.lock"):  # another process is building this one
        assert set(remove_truncated_libraries()) == set(whole) - {kernel}
    compile_once()
    assert not any(is_truncated(path) for path in tmp_path.glob("*/*.so"))
    assert kernel.stat().st_size == len(whole[kernel])
