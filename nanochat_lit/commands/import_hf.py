"""`nanochat-lit import-hf`: convert a Hugging Face folder to an export."""


def import_hf(folder: str, out: str, tokenizer: str | None = None) -> None:
    """Convert a Hugging Face folder back to an export, including models fine-tuned and saved by transformers.

    Args:
        folder: Folder written by `export --format hf`, by save_pretrained of that model, or of a published nanochat model
            of 2025 (NanoChatForCausalLM).
        out: Folder of the new export.
        tokenizer: Export to take the tokenizer and generation defaults from if save_pretrained did not write them.
    """
    from nanochat_lit.engine import hf_import

    hf_import.import_hf(folder, out, tokenizer)
    print(f"written to {out}; try: nanochat-lit chat --model {out}")
