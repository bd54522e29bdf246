"""`nanochat-lit import-nanochat`: convert a nanochat checkpoint to an export."""

from pathlib import Path

from nanochat_lit.common.errors import UserError


def import_nanochat(folder: str, out: str, step: int | None = None, tokenizer: str | None = None) -> None:
    """Convert a nanochat checkpoint and its tokenizer to an export.

    Prints a line for each value that older files lack. No code from the files is executed.

    Args:
        folder: nanochat checkpoint folder with model_NNNNNN.pt and meta_NNNNNN.json.
        out: Folder of the new export.
        step: Step of the checkpoint; null is the newest.
        tokenizer: Folder with tokenizer.pkl; null searches the checkpoint folder and nanochat's tokenizer folder.
    """
    from nanochat_lit.engine.export import save_export
    from nanochat_lit.engine.nanochat import load_nanochat_checkpoint, load_nanochat_tokenizer

    checkpoint = load_nanochat_checkpoint(folder, step)
    loaded, notes = load_nanochat_tokenizer(_tokenizer_folder(Path(folder), tokenizer))
    provenance = checkpoint.provenance | {"notes": [*checkpoint.notes, *notes]}
    save_export(out, checkpoint.model, loaded, provenance=provenance)
    config = checkpoint.model.config
    print(
        f"step {checkpoint.step}: {config.n_layer} layers, width {config.n_embd}, context {config.sequence_len}, "
        f"{loaded.vocab_size} tokens"
    )
    for note in provenance["notes"]:
        print(f"note: {note}")
    print(f"written to {out}; try: nanochat-lit chat --model {out}")


def _tokenizer_folder(folder: Path, given: str | None) -> Path:
    if given is not None:
        return Path(given)
    # nanochat writes BASE/tokenizer and BASE/base_checkpoints/d20; shared checkpoints have everything in one folder
    whole = folder.resolve()
    places = [folder, folder / "tokenizer", whole.parent / "tokenizer", whole.parent.parent / "tokenizer"]
    for place in places:
        if (place / "tokenizer.pkl").is_file():
            return place
    raise UserError(f"no tokenizer.pkl in {', '.join(map(str, places))}; give its folder with --tokenizer")
