"""`nanochat-lit export`: an export in the format of other libraries."""

from typing import Literal


def export(model: str, out: str, format: Literal["hf"] = "hf", dtype: Literal["stored", "bfloat16"] = "stored") -> None:  # noqa: A002
    """Write an export as a folder that other libraries load.

    hf: transformers' AutoModelForCausalLM (with trust_remote_code=True) and AutoTokenizer load it; the folder holds the
    modelling code, the tokenizer, the chat template and a model card. `nanochat-lit import-hf` is the way back.

    Args:
        model: Export folder.
        out: The new folder.
        format: hf.
        dtype: stored keeps every bit of the weights, bfloat16 halves the file and is no longer fit for training.
    """
    from nanochat_lit.engine.hf_export import export_hf

    export_hf(model, out, dtype)
    print(f"written to {out}; {format}: AutoModelForCausalLM.from_pretrained({str(out)!r}, trust_remote_code=True)")
