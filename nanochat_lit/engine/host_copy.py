"""Small numbers between host and device without waiting for the device."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def to_device(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The values as a tensor on a device; the host goes on while they are copied to a GPU.

    Args:
        values: Numbers, or nested lists of them.
        dtype: Of the tensor.
        device: Where it shall be.
    """
    tensor = torch.tensor(values, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class HostCopy:
    """A tensor's values on their way to the host; the device's later work does not delay them.

    Args:
        tensor: Copied when the device's earlier work is done; it may be overwritten by later work.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._copy = tensor.to("cpu", non_blocking=tensor.is_cuda, copy=True)  # pinned, where it does not block
        self._event = torch.cuda.Event() if tensor.is_cuda else None
        if self._event is not None:
            self._event.record()

    def tolist(self) -> list[Any]:
        """The values, as soon as they are here."""
        if self._event is not None:
            self._event.synchronize()
        return self._copy.tolist()
