"""`nanochat-lit quickstart`: the whole pipeline offline: data, tokenizer, pretraining, SFT, evaluation, report."""

import shlex
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import read_json, remove, write_json

RECORD_FILE = "quickstart.json"
"""Marks a folder as created by quickstart; contains its settings."""

MADE = (
    *("data", "pretrain", "tokenizer", "checkpoints", "export", "export_evaluation", "config.yaml", "plan.json"),
    *("validation.json", "sessions.json", "metrics.csv", "samples.md", "bad_batch.md"),
    *("report.md", "loss.png", "bpb.png", "report"),
)
"""Files and folders that quickstart, or a report on it, creates in its folder."""

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
"""Conversations with the finished model that the report shows."""


def quickstart(out: str = "runs/quickstart", fast: bool = False, seed: int = 0, overwrite: bool = False) -> None:
    """Train a small chat model from scratch, offline; takes 5 to 10 minutes on 2 CPU cores.

    Generates the tiny world, trains a tokenizer, pretrains, fine-tunes, and evaluates the model after each stage.
    Writes OUT/report.md with plots and dialogues, and the chat model OUT/export. After an interruption the same command
    resumes.

    Args:
        out: Output folder.
        fast: Run the same pipeline in one or two minutes as a smoke test; the resulting model cannot chat.
        seed: Seed of the generated data.
        overwrite: Replace an earlier quickstart in OUT.
    """
    from nanochat_lit.common.paths import run_lock

    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out {folder} is a file; give a folder")
    with run_lock(folder, "nanochat-lit quickstart"):
        record = _begin(folder, {"fast": fast, "seed": seed}, overwrite)
        started_s = time.perf_counter() - record["seconds"]
        try:
            _run(folder, FAST if fast else FULL, record, started_s)
            record["finished"] = True
        finally:
            record["seconds"] = time.perf_counter() - started_s
            write_json(folder / RECORD_FILE, record)


def _begin(folder: Path, settings: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    """Start a quickstart in the folder, or load the record of an interrupted one."""
    path = folder / RECORD_FILE
    new = {**settings, "seconds": 0.0, "finished": False}
    found = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]  # the lock is hidden
    if not found:
        write_json(path, new)
        return new
    if RECORD_FILE not in found:
        raise UserError(
            f"{folder} contains {sorted(found)[0]} and was not created by quickstart; choose another folder with --out"
        )
    record = read_json(path)
    if not overwrite and not record["finished"] and {**record, **settings} == record:
        print(f"resuming the quickstart in {folder}", file=sys.stderr)
        return record
    if not overwrite:
        state = f"{'a finished' if record['finished'] else 'an unfinished'} quickstart with fast {record['fast']}"
        if not (sys.stdin.isatty() and input(f"{folder} has {state}. Replace it? [y/N] ").lower() in ("y", "yes")):
            raise UserError(
                f"{folder} has {state}, seed {record['seed']}; use --overwrite true to replace it, or another --out"
            )
    for name in {*MADE, RECORD_FILE} & set(found):
        remove(folder / name)
    write_json(path, new)
    return new


def _run(folder: Path, size: dict[str, Any], record: dict[str, Any], started_s: float) -> None:
    from nanochat_lit.common.hardware import peak_memory_bytes
    from nanochat_lit.report.run import write_quickstart_report
    from nanochat_lit.tiny_world.files import write_tiny_world

    pretrain, data = folder / "pretrain", folder / "data"
    if not data.is_dir():
        _say(1, f"generating the tiny world in {data}")
        counts = {name: size[name] for name in ("num_documents", "num_conversations", "per_category")}
        write_tiny_world(data, **counts, seed=record["seed"])
    _say(2, "tokenizer and pretraining (a quarter of the total time)")
    _train(pretrain, "pretrain", size["pretrain_steps"], record, ["--data.path", str(data / "pretrain")])
    _say(3, "evaluating the base model")
    _, before = _examine(pretrain / "export", data / "test.jsonl", size["max_new_tokens"], limit=10)
    _say(4, "fine-tuning on conversations (three quarters of the total time)")
    options = ["--data.path", str(data / "sft"), "--model.base", str(pretrain / "export")]
    _train(folder, "sft", size["sft_steps"], record, options)
    _say(5, "evaluating the chat model")
    engine, after = _examine(folder / "export", data / "test.jsonl", size["max_new_tokens"])
    dialogues = [_converse(engine, questions, size["max_new_tokens"]) for questions in DIALOGUES]
    seconds = time.perf_counter() - started_s
    write_quickstart_report(folder, before, after, dialogues, seconds=seconds, peak_bytes=peak_memory_bytes())
    print((folder / "report.md").read_text(encoding="utf-8").split("## Curves")[0])
    print(f"Report: {folder / 'report.md'}\nChat:   nanochat-lit chat --model {folder / 'export'}")
    print(f"HTML report with curves, samples and settings: nanochat-lit report {pretrain} {folder}")


def _train(run: Path, stage: str, num_steps: int | None, record: dict[str, Any], options: list[str]) -> None:
    """Train or resume a stage; does nothing once it has reached its last step."""
    from nanochat_lit.engine.export import read_provenance
    from nanochat_lit.training.cli import main as trainer

    made = read_provenance(run / "export")
    if made.get("stage") == stage and made["steps"] >= made["planned_steps"]:
        return
    words = ["fit", "--config", f"recipes/quickstart_{stage}.yaml", "--run_dir", str(run), "--ckpt_path", "last"]
    words += options if num_steps is None else [*options, "--trainer.max_steps", str(num_steps)]
    words += ["--model.compile", "false"] if record["fast"] else []
    command = ["nanochat-lit", "quickstart", "--out", str(run if stage == "sft" else run.parent)]
    command += [f"--{name}={str(record[name]).lower()}" for name in ("fast", "seed") if record[name]]
    trainer(words, part_of=shlex.join(command))
    made = read_provenance(run / "export")
    made["data"] = "the tiny world, a generated world of simple facts, sums and stories"
    if record["fast"]:
        made["note"] = (
            "this model was trained by quickstart --fast, for too few steps to answer; run quickstart without --fast"
        )
    write_json(run / "export" / "provenance.json", made)


def _say(stage: int, what: str) -> None:
    print(f"\n[{stage}/5] {what}", file=sys.stderr, flush=True)


def _examine(
    export: Path, questions: Path, max_new_tokens: int, limit: int | None = None
) -> tuple[Any, dict[str, Any]]:
    """Return the model, and its accuracy per category, which is saved for `report`; `limit` caps the questions of each."""
    from nanochat_lit.engine.engine import Engine
    from nanochat_lit.engine.export import load_export
    from nanochat_lit.evaluation.tiny_world import examine
    from nanochat_lit.tasks.tiny_world import TinyWorldTask

    seen: Counter[str] = Counter()
    items = []
    for item in TinyWorldTask.load(questions).items:
        seen[item["category"]] += 1
        if limit is None or seen[item["category"]] <= limit:
            items.append(item)
    engine = Engine(*load_export(export, cast_weights=True))
    result = examine(engine, items, max_new_tokens)
    write_json(export.with_name("export_evaluation") / "tiny_world.json", result)
    return engine, result


def _converse(engine: Any, questions: tuple[str, ...], max_new_tokens: int) -> list[dict[str, Any]]:
    from nanochat_lit.tokenizer import parse_completion, render_for_completion

    messages: list[dict[str, Any]] = []
    for question in questions:
        messages.append({"role": "user", "content": question})
        prompt = render_for_completion(engine.tokenizer, {"messages": messages})
        if len(prompt) >= engine.model.config.sequence_len:
            break
        completion = engine.generate(prompt, max_new_tokens=max_new_tokens)[0]
        messages.append({"role": "assistant", "content": parse_completion(engine.tokenizer, completion)})
    return messages
