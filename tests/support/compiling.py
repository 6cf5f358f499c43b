"""Settings that make torch.compile's C++ backend build faster on a CPU. Results are the same; kernels are slower."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

# Each vector instruction set costs a compilation that only tests it. The last three: AVX2, and ARM's.
NARROW = """
import torch._inductor.config, torch._inductor.cpu_vec_isa
torch._inductor.config.cpp_cache_precompile_headers = False  # takes longer than a few kernels
torch._inductor.cpu_vec_isa.supported_vec_isa_list = torch._inductor.cpu_vec_isa.supported_vec_isa_list[-3:]
"""  # for the code of a new process


@contextmanager
def fast_compilation() -> Iterator[None]:
    """A context that applies the settings to this process."""
    import torch._inductor.config
    import torch._inductor.cpu_vec_isa as sets

    with pytest.MonkeyPatch.context() as patch, torch._inductor.config.patch(cpp_cache_precompile_headers=False):
        patch.setenv("TORCHINDUCTOR_DEBUG_COMPILE", "1")  # without optimisation
        patch.setattr(sets, "supported_vec_isa_list", sets.supported_vec_isa_list[-3:])
        yield
