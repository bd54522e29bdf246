"""`nanochat-lit export`: write a checkpoint as an export, or an export for transformers."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from nanochat_lit.common.errors import UserError


def export(
    model: str | None = None,
    out: str | None = None,
    checkpoint: str | None = None,
    format: Literal["hf", "nanochat-lit"] | None = None,  # noqa: A002
    dtype: Literal["stored", "bfloat16"] = "stored",
) -> None:
    """Write an export of a checkpoint, or a folder for Hugging Face transformers.

    Format nanochat-lit is the folder that chat, evaluate, serve and the next training stage load. Format hf is loaded
    by transformers' AutoModelForCausalLM (with trust_remote_code=True) and AutoTokenizer. It contains the modelling
    code, tokenizer, chat template and a model card. `nanochat-lit import-hf` converts it back.

    Args:
        model: Export, run folder, or .ckpt file.
        out: New folder; null, for a checkpoint, is export_NAME in its run folder.
        checkpoint: A .ckpt file; as --model, but the default format is nanochat-lit.
        format: nanochat-lit or hf; null is hf for --model and nanochat-lit for --checkpoint.
        dtype: stored keeps the weights exactly; bfloat16 halves the file size, but such an export cannot be trained
            further. Format hf only.
    """
    from nanochat_lit.common.file_lock import run_lock
    from nanochat_lit.engine.export import export_checkpoint, find_model

    if (model is None) == (checkpoint is None):
        raise UserError("give either --model EXPORT (or a run folder) or --checkpoint FILE.ckpt")
    source = find_model(model or checkpoint or "")
    chosen = format or ("hf" if checkpoint is None else "nanochat-lit")
    if out is None and not source.is_file():
        raise UserError("give the folder to write with --out")
    target = Path(out) if out is not None else source.resolve().parent.parent / f"export_{source.stem}"
    with run_lock(target.parent, "nanochat-lit export") if target.name == "export" else contextlib.nullcontext():
        if chosen == "hf":
            from nanochat_lit.engine.hf_export import export_hf

            with _as_export(source) as folder:
                export_hf(folder, target, dtype)
            print(
                f"written to {target}; hf: AutoModelForCausalLM.from_pretrained({str(target)!r}, trust_remote_code=True)"
            )
            return
        if not source.is_file():
            raise UserError(f"{source} is already an export; use --format hf to write a transformers folder")
        export_checkpoint(source, target)
    print(f"written to {target}; try: nanochat-lit chat --model {target}")


@contextlib.contextmanager
def _as_export(source: Path) -> Iterator[Path]:
    """Yield the export itself, or a temporary export of a checkpoint."""
    from nanochat_lit.engine.export import export_checkpoint

    if not source.is_file():
        yield source
        return
    with tempfile.TemporaryDirectory() as name:
        export_checkpoint(source, Path(name) / "export")
        yield Path(name) / "export"
