"""The C++ kernels against PyTorch at the shapes of use, in processor time of one thread, so that a busy machine matters little."""

import time
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat_lit.model.decode_kernel import KernelLinear, kernel_library
from nanochat_lit.model.loss import softmax_and_slope
from nanochat_lit.model.loss_kernel import loss_and_gradient_in_place
from nanochat_lit.model.packed import quantize_groups, quantize_rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(kernel_library() is None, reason="no C++ compiler found"),
]
MARGIN = 1.3
"""Of PyTorch's time; measured are 0.2 to 1.0."""

CALL_S = 20e-6
"""What a call of a single layer from Python costs; a decode step is one call for the whole model."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seconds(*computations: Callable[[], object]) -> list[float]:
    """The fastest of 15 runs of each, by turns."""
    best = [float("inf")] * len(computations)
    for _ in range(15):
        for number, compute in enumerate(computations):
            start_s = time.process_time()
            compute()
            best[number] = min(best[number], time.process_time() - start_s)
    return best


@pytest.mark.parametrize("shape", [(1024, 256), (256, 1024), (8192, 256), (3072, 768), (768, 3072)])
@pytest.mark.parametrize("rows", [1, 16, 128])
@pytest.mark.parametrize("stored", ["float32", "bfloat16", "int8", "int4"])
def test_a_layer_is_no_slower_than_pytorchs(shape: tuple[int, int], rows: int, stored: str) -> None:
    weight, inputs = torch.randn(shape), torch.randn(rows, shape[1])
    quantized = {"int8": quantize_rows, "int4": quantize_groups}.get(stored)
    layer = KernelLinear(*quantized(weight)) if quantized else KernelLinear(weight.to(getattr(torch, stored)))
    with torch.inference_mode():
        ours, theirs = seconds(lambda: layer(inputs), lambda: F.linear(inputs, weight))
    assert ours < MARGIN * theirs + CALL_S


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_is_faster_than_pytorchs(dtype: torch.dtype) -> None:
    """Even the compiler's best form makes the exponentials that are counted here."""
    logits, targets = torch.randn(256, 8192).to(dtype), torch.randint(8192, (256,))
    is_kept = torch.ones(256, 1, dtype=torch.bool)

    def plain() -> tuple[Tensor, Tensor]:
        return softmax_and_slope(logits, is_kept)

    ours, theirs = seconds(lambda: loss_and_gradient_in_place(logits.clone(), targets), plain)
    assert ours < MARGIN * theirs
