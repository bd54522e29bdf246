"""Leaves the portable export when training is over."""

from pathlib import Path
from typing import TYPE_CHECKING, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from nanochat_lit.common.distributed import is_rank_zero
from nanochat_lit.engine.export import save_export

if TYPE_CHECKING:
    from nanochat_lit.training.module import LanguageModule


class ExportModel(Callback):
    """Writes `export/` into the run folder at the end of fit: what chat, evaluate and the next stage read.

    Also when a checkpoint was resumed that had reached its last step, since the run may have ended before its export.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_rank_zero():
            return
        module = cast("LanguageModule", pl_module)
        value = trainer.callback_metrics.get(module.figure)
        provenance = {
            "stage": module.stage,
            "steps": trainer.global_step,
            "tokens": trainer.global_step * module.plan.tokens_per_step,
            module.figure: None if value is None else float(value),
            "compute_dtype": str(module.model.compute_dtype).removeprefix("torch."),
            "hyper_parameters": module.hyper_parameters,
        }
        folder = Path(trainer.default_root_dir) / "export"
        save_export(folder, module.model, module.tokenizer, module.generation, provenance)
