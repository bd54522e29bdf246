"""Selects the Trainer's accelerator and adds Intel GPUs, which Lightning does not support."""

from typing import Any

import torch
from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.hardware import default_device, why_no_gpu


class XPUAccelerator(Accelerator):
    """Intel GPUs: `--trainer.accelerator xpu`."""

    def setup_device(self, device: torch.device) -> None:
        torch.xpu.set_device(device)

    def teardown(self) -> None:
        torch.xpu.empty_cache()

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return torch.xpu.memory_stats(device)

    @staticmethod
    def parse_devices(devices: Any) -> list[int]:
        """Return device indices for a count, a selection (a list or "0,1") or all ("auto" or -1)."""
        if isinstance(devices, str) and devices not in ("auto", "-1"):
            devices = [int(part) for part in devices.split(",")] if "," in devices else int(devices)
        if devices in ("auto", "-1", -1):
            devices = XPUAccelerator.auto_device_count()
        return list(range(devices)) if isinstance(devices, int) else list(devices)

    @staticmethod
    def get_parallel_devices(devices: list[int]) -> list[torch.device]:
        return [torch.device("xpu", index) for index in devices]

    @staticmethod
    def auto_device_count() -> int:
        return torch.xpu.device_count()

    @staticmethod
    def is_available() -> bool:
        return torch.xpu.is_available()

    @staticmethod
    def name() -> str:
        return "xpu"


def choose_accelerator(requested: Any, devices: Any) -> Any:
    """Return the Trainer's accelerator; "gpu" and "auto" select an Intel GPU if it is the only kind available.

    Args:
        requested: The key trainer.accelerator.
        devices: The key trainer.devices.

    Raises:
        UserError: If a GPU is requested but torch cannot use one; includes the reason.
    """
    AcceleratorRegistry.register("xpu", XPUAccelerator, description="Intel GPUs", override=True)
    if requested in ("gpu", "cuda") and not torch.accelerator.is_available():
        raise UserError(
            f"this run requests {devices} GPU(s), but {why_no_gpu()}; use a machine with GPUs, or "
            "--trainer.accelerator cpu --trainer.devices 1 --trainer.strategy auto"
        )
    return "xpu" if requested in ("gpu", "auto", None) and default_device().type == "xpu" else requested
