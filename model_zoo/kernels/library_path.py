"""Quotes the path of torch's libraries for the linker, so that an environment may lie in a path with spaces."""

import shlex
from functools import cache


@cache
def quote_library_path() -> None:
    """Quotes the path, once. Call it before torch compiles C++ code, for an operator or for torch.compile.

    Torch quotes the paths of headers and sources, but writes this one into its commands as it is.
    """
    from torch.utils import cpp_extension  # looks for CUDA, and warns if there is none

    cpp_extension.TORCH_LIB_PATH = shlex.quote(cpp_extension.TORCH_LIB_PATH)
