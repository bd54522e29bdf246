"""Per-rank checkpoint state that Lightning omits: data position, random state and pending metrics."""

import io
import random
from typing import TYPE_CHECKING, Any, cast

import numpy
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from nanochat_lit.common.distributed import rank, world_size

if TYPE_CHECKING:
    from nanochat_lit.training.module import LanguageModule

KEY = "ranks"


class RankState(Callback):
    """Saves the state of all ranks in the checkpoint and restores each rank's own."""

    def __init__(self) -> None:
        self._own: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        module = cast("LanguageModule", pl_module)
        own = {
            "random": random_state(module.device),
            "position": module.datamodule.position(),
            "module": module.rank_state_dict(),
        }
        states: list[Any] = [own]
        if world_size() > 1:  # a collective; Lightning calls this hook on every rank
            boxes: list[Any] = [None] * world_size()
            dist.all_gather_object(boxes, _packed(own))
            states = [torch.load(io.BytesIO(box), weights_only=True) for box in boxes]
        checkpoint[KEY] = states

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit":
            return
        states = checkpoint[KEY]
        module = cast("LanguageModule", pl_module)
        module.datamodule.continue_from([state["position"] for state in states])
        self._own = states[rank()] if len(states) == world_size() else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._own is not None:
            set_random_state(self._own["random"], pl_module.device)
            cast("LanguageModule", pl_module).load_rank_state_dict(self._own["module"])
            self._own = None


def _packed(state: dict[str, Any]) -> bytes:
    """Serialize with torch.save, since tensors of unsigned integers pickled by `all_gather_object` cannot be loaded."""
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the generator states of torch (CPU and the GPU in use), numpy and Python, loadable with weights_only."""
    name, keys, *rest = cast("tuple[Any, ...]", numpy.random.get_state(legacy=True))  # noqa: NPY002 - the global generator is what others may use
    return {
        "torch": torch.get_rng_state(),
        "device": None if device.type == "cpu" else torch.get_device_module(device.type).get_rng_state(),
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype("int64")), *rest),
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore the state that `random_state` returned."""
    torch.set_rng_state(state["torch"])
    if state.get("device") is not None and device.type != "cpu":
        torch.get_device_module(device.type).set_rng_state(state["device"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    numpy.random.set_state((name, keys.numpy().astype("uint32"), *rest))  # noqa: NPY002
