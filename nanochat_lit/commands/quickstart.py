"""`nanochat-lit quickstart`: the whole path once, offline: data, tokenizer, pretraining, SFT, evaluation, a report."""

import sys
import time
from pathlib import Path
from typing import Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import write_json

FAST = {
    "num_documents": 3000,
    "num_conversations": 3000,
    "pretrain_steps": 15,
    "sft_steps": 20,
    "per_category": 2,
    "max_new_tokens": 16,
}
FULL = {
    "num_documents": 40_000,
    "num_conversations": 60_000,
    "pretrain_steps": None,
    "sft_steps": None,
    "per_category": 100,
    "max_new_tokens": 128,
}

DIALOGUES: tuple[tuple[str, ...], ...] = (
    ("Hello!", "Who are you?", "Who made you?"),
    ("What is 127 plus 358?", "And how many r's are in strawberry?"),
    ("What is the capital of France?", "And of Italy?"),
    ("Which day comes after Monday?", "What is the opposite of hot?"),
    ("Tell me a story about a fox named Pip.",),
    ("Bonjour !",),
    ("Who won the chess tournament last week?",),
)
"""What the report asks the finished model."""


def quickstart(out: str = "runs/quickstart", fast: bool = False, seed: int = 0) -> None:
    """Train a small chat model from nothing, offline: about 8 minutes on 2 CPU cores.

    Generates the tiny world, trains a tokenizer, pretrains, fine-tunes, and examines the model before and after each
    stage. Leaves OUT/report.md with plots and dialogues, and OUT/export to chat with.

    Args:
        out: Folder for everything that is made; an earlier quickstart in it is replaced.
        fast: The same path in a minute or two, to see that it works; the model will not be able to talk.
        seed: Of the generated data.
    """
    from nanochat_lit.common.peak_memory import peak_memory_bytes
    from nanochat_lit.report.quickstart import write_report
    from nanochat_lit.tiny_world.files import write_tiny_world
    from nanochat_lit.training.cli import main as trainer

    start_s = time.perf_counter()
    size: dict[str, Any] = FAST if fast else FULL
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out {folder} is a file; give a folder")
    pretrain, data = folder / "pretrain", folder / "data"
    _clear_earlier_run(folder)
    _say(1, f"generating the tiny world in {data}")
    write_tiny_world(
        data,
        num_documents=size["num_documents"],
        num_conversations=size["num_conversations"],
        per_category=size["per_category"],
        seed=seed,
    )
    quick = ["--model.compile", "false"] if fast else []
    _say(2, "tokenizer and pretraining: a quarter of the work")
    trainer(
        [
            *("fit", "--config", "recipes/quickstart_pretrain.yaml", "--run_dir", str(pretrain), "--overwrite", "true"),
            *("--data.path", str(data / "pretrain"), *_steps(size["pretrain_steps"]), *quick),
        ]
    )
    _say(3, "examining the base model")
    before = _examine(pretrain / "export", data / "test.jsonl", size["max_new_tokens"], limit=10)
    _say(4, "fine-tuning on conversations: three quarters of the work")
    trainer(
        [
            *("fit", "--config", "recipes/quickstart_sft.yaml", "--run_dir", str(folder), "--overwrite", "true"),
            *("--data.path", str(data / "sft"), "--model.base", str(pretrain / "export")),
            *(*_steps(size["sft_steps"]), *quick),
        ]
    )
    _say(5, "examining the chat model")
    after = _examine(folder / "export", data / "test.jsonl", size["max_new_tokens"])
    dialogues = [_converse(folder / "export", questions, size["max_new_tokens"]) for questions in DIALOGUES]
    write_report(
        folder, before, after, dialogues, seconds=time.perf_counter() - start_s, peak_bytes=peak_memory_bytes()
    )
    print((folder / "report.md").read_text(encoding="utf-8").split("## Curves")[0])
    print(f"Report: {folder / 'report.md'}\nChat:   nanochat-lit chat --model {folder / 'export'}")
    print(f"Curves, samples, settings as one HTML page: nanochat-lit report {pretrain} {folder}")


def _say(stage: int, what: str) -> None:
    print(f"\n[{stage}/5] {what}", file=sys.stderr, flush=True)


def _steps(num_steps: int | None) -> list[str]:
    return [] if num_steps is None else ["--trainer.max_steps", str(num_steps)]


def _clear_earlier_run(folder: Path) -> None:
    """Remove what an earlier quickstart would leak into this one: its tokenizer, and metrics that would be appended to."""
    import shutil

    for name in ("pretrain/tokenizer", "pretrain/metrics.csv", "metrics.csv", "samples.md", "pretrain/samples.md"):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _examine(export: Path, questions: Path, max_new_tokens: int, limit: int | None = None) -> dict[str, Any]:
    """Accuracy per category, kept for `report`; `limit` asks only the first so many of each."""
    from nanochat_lit.engine.engine import Engine
    from nanochat_lit.engine.export import load_export
    from nanochat_lit.evaluation.tiny_world import examine
    from nanochat_lit.tasks.tiny_world import TinyWorldTask

    items = list(TinyWorldTask.load(questions).items)
    if limit is not None:
        seen: dict[str, int] = {}
        kept = []
        for item in items:
            seen[item["category"]] = seen.get(item["category"], 0) + 1
            if seen[item["category"]] <= limit:
                kept.append(item)
        items = kept
    result = examine(Engine(*load_export(export, cast_weights=True)), items, max_new_tokens)
    write_json(export.with_name("export_evaluation") / "tiny_world.json", result)
    return result


def _converse(export: Path, questions: tuple[str, ...], max_new_tokens: int) -> list[dict[str, Any]]:
    """A whole conversation: each question is asked with the answers before it in view."""
    from nanochat_lit.engine.engine import Engine
    from nanochat_lit.engine.export import load_export
    from nanochat_lit.tokenizer import parse_completion, render_for_completion

    engine = Engine(*load_export(export, cast_weights=True))
    messages: list[dict[str, Any]] = []
    for question in questions:
        messages.append({"role": "user", "content": question})
        prompt = render_for_completion(engine.tokenizer, {"messages": messages})
        if len(prompt) >= engine.model.config.sequence_len:
            break
        completion = engine.generate(prompt, max_new_tokens=max_new_tokens)[0]
        messages.append({"role": "assistant", "content": parse_completion(engine.tokenizer, completion)})
    return messages
