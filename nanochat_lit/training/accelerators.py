"""Which kind of device a run trains on, and Intel's GPUs, which Lightning does not know."""

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
        """Numbers of devices, from how many, which (a list, or "0,1"), or all ("auto", -1)."""
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
    """The Trainer's accelerator: what is asked for, and Intel's where "gpu" or "auto" can only mean that.

    Args:
        requested: The key trainer.accelerator.
        devices: The key trainer.devices.

    Raises:
        UserError: If a GPU is asked for and torch cannot use one; it gives the reason.
    """
    AcceleratorRegistry.register("xpu", XPUAccelerator, description="Intel GPUs", override=True)
    if requested in ("gpu", "cuda") and not torch.accelerator.is_available():
        raise UserError(
            f"this run asks for {devices} GPU(s), but {why_no_gpu()}; use one that has them, or "
            "--trainer.accelerator cpu --trainer.devices 1 --trainer.strategy auto"
        )
    return "xpu" if requested in ("gpu", "auto", None) and default_device().type == "xpu" else requested
