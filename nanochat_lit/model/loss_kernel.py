"""Python's side of loss_kernel.cpp: losses and gradients of a chunk of logits in one call, on a CPU."""

import ctypes
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from nanochat_lit.common.compilers import cpp_library, library_problem

_SOURCE = Path(__file__).parent / "loss_kernel.cpp"

IGNORE_INDEX = -1
"""Target that is not trained on."""


def loss_problem() -> str:
    """Return in one line why the kernel is not available; empty if it is."""
    return library_problem(_SOURCE)


@lru_cache(maxsize=1)
def loss_library() -> ctypes.CDLL | None:
    """Return the compiled kernel, built on first use; None if it cannot be built."""
    library = cpp_library(_SOURCE)
    if library is not None:
        pointer, size, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
        library.loss_and_gradient.argtypes = [pointer, pointer, size, size, pointer, flag, flag, flag, pointer]
        library.add_bfloat16.argtypes = [pointer, pointer, size, flag]
        library.loss_and_gradient.restype = library.add_bfloat16.restype = None
    return library


def has_loss_kernel(logits: Tensor) -> bool:
    """Return whether the kernel supports these logits on this machine."""
    fits = logits.device.type == "cpu" and logits.dtype in (torch.float32, torch.bfloat16)
    return fits and loss_library() is not None


def loss_and_gradient_in_place(
    logits: Tensor, targets: Tensor, *, is_capped: bool = True, factors: Tensor | None = None
) -> Tensor:
    """Return the cross entropy, (N,) nats, of a chunk's rows; the gradient of its sum takes the place of the logits.

    The logits, (N, V), are contiguous, float32 or bfloat16; they are softcapped first if `is_capped`. `factors`, (V,)
    float32, are multiplied with the exponentials and 1 at all targets. Ignored targets count 0; others out of range
    raise IndexError.
    """
    library = loss_library()
    assert library is not None, "called without a kernel"
    assert logits.is_contiguous(), "rows follow each other"
    rows, size = logits.shape
    assert targets.shape == (rows,), "a target for each row"
    if rows:  # the kernel would read and write outside of the row
        lowest, highest = map(int, targets.aminmax())
        if lowest < IGNORE_INDEX or highest >= size:
            wrong = highest if highest >= size else lowest
            raise IndexError(
                f"target {wrong} is neither {IGNORE_INDEX} (ignored) nor one of the {size} logits of a row"
            )
    targets, losses = targets.to(torch.int64).contiguous(), torch.empty(rows)
    is_bfloat16, threads = int(logits.dtype == torch.bfloat16), torch.get_num_threads()
    arrays, weights = (logits.data_ptr(), targets.data_ptr()), None if factors is None else factors.data_ptr()
    library.loss_and_gradient(*arrays, rows, size, weights, is_bfloat16, int(is_capped), threads, losses.data_ptr())
    return losses


def add_in_place(sums: Tensor, added: Tensor) -> None:
    """Add a tensor to a float32 one, both contiguous; torch would copy a bfloat16 one to float32 first."""
    library = loss_library() if has_loss_kernel(added) and added.dtype == torch.bfloat16 else None
    if library is None:
        sums += added
        return
    assert sums.is_contiguous(), "elements follow each other"
    assert added.is_contiguous(), "elements follow each other"
    assert sums.shape == added.shape, "an element for each"
    library.add_bfloat16(sums.data_ptr(), added.data_ptr(), sums.numel(), torch.get_num_threads())
