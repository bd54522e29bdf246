"""`nanochat-lit push`: upload an export to the Hugging Face hub."""

import tempfile
from pathlib import Path
from typing import Literal


def push(
    model: str,
    repo: str,
    revision: str | None = None,
    private: bool = False,
    dry_run: bool = False,
    format: Literal["hf", "export"] = "hf",  # noqa: A002
) -> None:
    """Upload an export to the Hugging Face hub, with a model card, as one commit.

    The model card states the architecture, training, recipe and data, scores with intervals, and limits. The token is
    that of `hf auth login` or HF_TOKEN.

    Args:
        model: Export, run folder, .ckpt file or hf://OWNER/NAME.
        repo: OWNER/NAME; created if it does not exist.
        revision: Branch, created if it does not exist; null is main.
        private: Create the model as private; an error if it exists and is public.
        dry_run: List the files with their sizes, without sending anything.
        format: hf is a folder for transformers, as `export --format hf` writes it; export is the export itself. `pull` and
            `--model hf://OWNER/NAME` read both.
    """
    from nanochat_lit.engine.export import as_export, find_model, load_export
    from nanochat_lit.engine.export_folder import copy_export
    from nanochat_lit.engine.hf_export import export_hf
    from nanochat_lit.engine.hub import HubModel, files_of, push_folder
    from nanochat_lit.engine.model_card import model_card

    target = HubModel(repo, revision)
    with as_export(find_model(model)) as export, tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "files"
        if format == "hf":
            export_hf(export, folder, name=repo)
        else:
            card = model_card(export, repo, load_export(export, "cpu", "float32")[0], for_transformers=False)
            copy_export(export, folder)
            (folder / "README.md").write_text(card, encoding="utf-8")
        if dry_run:
            sizes = files_of(folder)
            print("\n".join(f"{size:>15,} bytes  {path}" for path, size in sizes.items()))
            print(f"{sum(sizes.values()):>15,} bytes in {len(sizes)} files to {target}; nothing was sent")
            return
        url = push_folder(folder, target, private)
    print(f"uploaded to {url}; try: nanochat-lit chat --model {target}")
