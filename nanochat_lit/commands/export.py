"""`nanochat-lit export`: a checkpoint as an export, an export in the format of other libraries."""

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
    """Write an export of a checkpoint, or a folder that other libraries load.

    nanochat-lit: the folder that chat, evaluate, serve and the next stage read; from any checkpoint of a run.
    hf: transformers' AutoModelForCausalLM (with trust_remote_code=True) and AutoTokenizer load it; the folder holds the
    modelling code, the tokenizer, the chat template and a model card. `nanochat-lit import-hf` is the way back.

    Args:
        model: Export, run folder, or .ckpt file.
        out: The new folder; null, for a checkpoint, is export_NAME in its run folder.
        checkpoint: A .ckpt file; like --model, but the format is nanochat-lit unless another is given.
        format: nanochat-lit or hf; null is hf for --model and nanochat-lit for --checkpoint.
        dtype: stored keeps every bit of the weights, bfloat16 halves the file and cannot be trained further. For hf.
    """
    from nanochat_lit.common.run_lock import run_lock
    from nanochat_lit.engine.export import export_checkpoint, find_model

    if (model is None) == (checkpoint is None):
        raise UserError("give either --model EXPORT (or a run folder) or --checkpoint FILE.ckpt")
    source = find_model(model or checkpoint or "")
    chosen = format or ("hf" if checkpoint is None else "nanochat-lit")
    if out is None and not source.is_file():
        raise UserError("give --out, the folder to write")
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
            raise UserError(f"{source} is an export already; --format hf writes it for other libraries")
        export_checkpoint(source, target)
    print(f"written to {target}; try: nanochat-lit chat --model {target}")


@contextlib.contextmanager
def _as_export(source: Path) -> Iterator[Path]:
    """The export itself, or one of the checkpoint in a temporary folder."""
    from nanochat_lit.engine.export import export_checkpoint

    if not source.is_file():
        yield source
        return
    with tempfile.TemporaryDirectory() as name:
        export_checkpoint(source, Path(name) / "export")
        yield Path(name) / "export"
