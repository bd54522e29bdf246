"""Python interface of muon_kernel.cpp: the parts of Muon other than matmuls, on a CPU.

As tensor operations these are about thirty passes over the matrices, which take as long as the matmuls.
"""

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from nanochat_lit.common.compilers import cpp_library


@lru_cache(maxsize=1)
def muon_library() -> ctypes.CDLL | None:
    """Return the compiled kernel, built on first use; None without a C++ compiler."""
    library = cpp_library(Path(__file__).with_name("muon_kernel.cpp"))
    if library is not None:
        array, size, real, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int32
        library.muon_momentum.argtypes = [array, array, size, size, size, real, number, array, number]
        library.muon_combine.argtypes = [array, real, array, real, size, number]
        library.muon_update.argtypes = [array, array, array, size, size, size, real, real, real, number, number]
        library.muon_momentum.restype = library.muon_combine.restype = library.muon_update.restype = None
    return library


def has_muon_kernel(matrices: Sequence[Tensor], product_dtype: torch.dtype) -> bool:
    """Return whether the kernel supports these parameters and gradients."""
    fits = all(
        matrix.device.type == "cpu" and matrix.dtype == torch.float32 and matrix.is_contiguous() for matrix in matrices
    )
    return fits and product_dtype in (torch.float32, torch.bfloat16) and muon_library() is not None


def normalised_momentum(
    gradients: Sequence[Tensor], momentum_buffer: Tensor, momentum: float, dtype: torch.dtype
) -> Tensor:
    """Return the Nesterov momentum of K matrices (m, n) with rows of equal norm; its Frobenius norms are 1 / 1.01.

    `momentum_buffer`, (K, m, n), is updated in place; `dtype`, of the result, is float32 or bfloat16.
    """
    library, shape = muon_library(), momentum_buffer.shape
    assert library is not None, "called without a kernel"
    assert shape == (len(gradients), *gradients[0].shape), "one momentum matrix per gradient"
    out = torch.empty(shape, dtype=dtype)
    arrays, threads = (_pointers(gradients), momentum_buffer.data_ptr()), torch.get_num_threads()
    library.muon_momentum(*arrays, *shape, momentum, threads, out.data_ptr(), int(dtype == torch.bfloat16))
    return out


def add_product(x: Tensor, a: float, left: Tensor, right: Tensor, b: float) -> Tensor:
    """Return a * x + b * left @ right of stacks of matrices; in bfloat16 x may be overwritten.

    In float32 the BLAS library also adds. In bfloat16 it would round the product first.
    """
    if x.dtype == torch.float32:
        return torch.baddbmm(x, left, right, beta=a, alpha=b)
    library, y = muon_library(), left @ right
    assert library is not None, "called without a kernel"
    assert x.shape == y.shape, "shapes must be equal"
    library.muon_combine(x.data_ptr(), a, y.data_ptr(), b, x.numel(), torch.get_num_threads())
    return x


def update_in_place(
    parameters: Sequence[Tensor],
    direction: Tensor,
    second_moment: Tensor,
    *,
    beta2: float,
    lr: float,
    weight_decay: float,
) -> None:
    """Scale the directions, equalize the neurons, and update K matrices (m, n) in place.

    `direction`, (K, m, n), is float32 or bfloat16, contiguous, and orthogonal up to a factor. `second_moment` is that
    of `normalise_neurons`, updated in place. Weight decay applies where it has the sign of the update.
    """
    library = muon_library()
    assert library is not None, "called without a kernel"
    assert direction.shape == (len(parameters), *parameters[0].shape), "one direction per matrix"
    assert second_moment.numel() == len(parameters) * max(parameters[0].shape), "one mean square per neuron"
    arrays = _pointers(parameters), direction.data_ptr(), second_moment.data_ptr()
    numbers = beta2, lr, weight_decay, torch.get_num_threads(), int(direction.dtype == torch.bfloat16)
    library.muon_update(*arrays, *direction.shape, *numbers)


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
