"""Leaves the portable export when training is over."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from nanochat_lit.common.distributed import is_rank_zero
from nanochat_lit.engine.export import save_export


class ExportModel(Callback):
    """Writes `export/` into the run folder at the end of fit: what chat, evaluate and the next stage read."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_rank_zero():
            return
        val_bpb = trainer.callback_metrics.get("val_bpb")
        provenance = {
            "stage": pl_module.stage,
            "steps": trainer.global_step,
            "tokens": trainer.global_step * pl_module.plan.tokens_per_step,
            "val_bpb": None if val_bpb is None else float(val_bpb),
            "compute_dtype": str(pl_module.model.compute_dtype).removeprefix("torch."),
            "hyper_parameters": pl_module.learning_rates | {"tokens_per_step": pl_module.plan.tokens_per_step},
        }
        save_export(
            Path(trainer.default_root_dir) / "export", pl_module.model, pl_module.tokenizer, provenance=provenance
        )
