"""`nanochat-lit import-hf`: an export of a folder that `nanochat-lit export` wrote for Hugging Face."""


def import_hf(folder: str, out: str, tokenizer: str | None = None) -> None:
    """Make an export again of a folder for Hugging Face, also after transformers has trained and saved the model.

    Args:
        folder: What `export --format hf` wrote, or what save_pretrained wrote of it.
        out: Folder for the export.
        tokenizer: Export whose tokenizer and generation defaults to take, where save_pretrained has left them out.
    """
    from nanochat_lit.engine import hf_export

    hf_export.import_hf(folder, out, tokenizer)
    print(f"written to {out}; try: nanochat-lit chat --model {out}")
