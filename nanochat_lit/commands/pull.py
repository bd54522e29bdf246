"""`nanochat-lit pull`: download a model from the Hugging Face hub as an export."""


def pull(repo: str, out: str | None = None, revision: str | None = None) -> None:
    """Download a model that `nanochat-lit push` uploaded, or one of transformers' Qwen3 or NanoChat classes, as an export.

    No code of the repository is executed. `--model hf://OWNER/NAME` of other commands downloads into the cache instead.

    Args:
        repo: OWNER/NAME, optionally with @REVISION.
        out: Export folder to write; null is runs/NAME/export.
        revision: Branch, tag or commit; null is main.
    """
    from nanochat_lit.engine.hub import HubModel, pull_model

    model = HubModel.parse(repo if revision is None else f"{repo}@{revision}")
    folder = model.run_folder / "export" if out is None else out
    pull_model(model, folder)
    print(f"written to {folder}; try: nanochat-lit chat --model {folder}")
