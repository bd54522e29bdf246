"""`nanochat-lit export`: write a checkpoint as an export, or an export for other programs."""

import contextlib
from pathlib import Path
from typing import Literal

from nanochat_lit.common.errors import UserError


def export(
    model: str | None = None,
    out: str | None = None,
    checkpoint: str | None = None,
    format: Literal["hf", "gguf", "nanochat-lit"] | None = None,  # noqa: A002
    dtype: Literal["stored", "bfloat16"] = "stored",
    quantize: Literal["f32", "f16", "bf16", "q8_0", "q4_0"] | None = None,
) -> None:
    """Write an export of a checkpoint, a folder for Hugging Face transformers, or a GGUF file for llama.cpp and ollama.

    Format nanochat-lit is the folder that chat, evaluate, serve and the next training stage load. Format hf is loaded
    by transformers' AutoModelForCausalLM and AutoTokenizer. It contains tokenizer, chat template and a model card.
    `nanochat-lit import-hf` converts it back. A model of the default architecture needs trust_remote_code=True and
    includes its modelling code; one of the architecture qwen3 is also loaded by vLLM and MLX. Format gguf (qwen3 only)
    is a folder with model.gguf and an ollama Modelfile.

    Args:
        model: Export, run folder, .ckpt file or hf://OWNER/NAME.
        out: New folder; null, for a checkpoint, is export_NAME in its run folder.
        checkpoint: A .ckpt file; as --model, but the default format is nanochat-lit.
        format: nanochat-lit, hf or gguf; null is hf for --model and nanochat-lit for --checkpoint.
        dtype: stored keeps the weights exactly; bfloat16 halves the file size, but such an export cannot be trained
            further. Format hf only.
        quantize: Type of the matrices; null is f16. q8_0 and q4_0 are 8 and 4 bits per weight. Format gguf only.
    """
    from nanochat_lit.common.paths import run_lock
    from nanochat_lit.engine.export import as_export, export_checkpoint, find_model, read_config
    from nanochat_lit.model.config import NATIVE_ARCHITECTURES

    if (model is None) == (checkpoint is None):
        raise UserError("give either --model EXPORT (or a run folder) or --checkpoint FILE.ckpt")
    source = find_model(model or checkpoint or "")
    chosen = format or ("hf" if checkpoint is None else "nanochat-lit")
    if quantize is not None and chosen != "gguf":
        raise UserError(f"--quantize {quantize} needs --format gguf; the format is {chosen}")
    if dtype != "stored" and chosen != "hf":
        raise UserError(f"--dtype {dtype} needs --format hf; the format is {chosen}")
    if out is None and not source.is_file():
        raise UserError("give the folder to write with --out")
    target = Path(out) if out is not None else source.resolve().parent.parent / f"export_{source.stem}"
    with run_lock(target.parent, "nanochat-lit export") if target.name == "export" else contextlib.nullcontext():
        if chosen == "nanochat-lit":
            if not source.is_file():
                raise UserError(
                    f"{source} is already an export; use --format hf or gguf to write it for other programs"
                )
            export_checkpoint(source, target)
            hint = f"; try: nanochat-lit chat --model {target}"
        elif chosen == "gguf":
            from nanochat_lit.engine.gguf_export import export_gguf

            with as_export(source) as folder:
                export_gguf(folder, target, quantize or "f16")
            hint = f"; try: llama-server --jinja -m {target}/model.gguf, or: ollama create NAME -f {target}/Modelfile"
        else:
            from nanochat_lit.engine.hf_export import export_hf

            with as_export(source) as folder:
                export_hf(folder, target, dtype)
            trust = "" if read_config(source).architecture in NATIVE_ARCHITECTURES else ", trust_remote_code=True"
            hint = f"; hf: AutoModelForCausalLM.from_pretrained({str(target)!r}{trust})"
    print(f"written to {target}{hint}")
