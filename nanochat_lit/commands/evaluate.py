"""nanochat-lit evaluate: measure an export. The last line of stdout with --json is one JSON object."""

import itertools
from json import dumps
from pathlib import Path
from typing import Any, Literal

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import write_json


def bpb(
    model: str,
    data: str,
    max_docs: int | None = None,
    micro_batch_size: int = 8,
    device: str | None = None,
    compute_dtype: str = "auto",
    quantize: Literal["int8"] | None = None,
    out: str | None = None,
    json: bool = False,
) -> None:
    """Bits per byte of the documents of a file or folder, every document whole.

    Args:
        model: Export folder.
        data: File or folder of .txt, .jsonl or .parquet; documents are taken in order.
        max_docs: Stop after this many documents; null reads all.
        micro_batch_size: Pieces of sequence_len tokens per forward pass.
        device: cpu, cuda or mps; null is the fastest there is.
        compute_dtype: auto, bfloat16, float16 or float32.
        quantize: int8 measures the model as it is with 8-bit matrices (CPU); null does not round.
        out: Folder that gets bpb.json, such as runs/X/export_evaluation, where `report` finds it; null writes no file.
        json: Print the result as JSON alone.
    """
    from nanochat_lit.data.shards import documents
    from nanochat_lit.engine.export import load_export
    from nanochat_lit.evaluation.bpb import evaluate_documents

    texts = documents(data)  # first, because a wrong path shows at once
    gpt, tokenizer = load_export(model, device, compute_dtype, cast_weights=True, quantize=quantize)
    result = evaluate_documents(gpt, tokenizer, texts, max_docs, micro_batch_size)
    whole = {**result, "model": model, "data": data}
    if out is not None:
        write_json(Path(out) / "bpb.json", whole)
    if json:
        print(dumps(whole))
        return
    print(
        f"{result['bpb']:.4f} bits per byte: {result['documents']:,} documents, {result['tokens']:,} tokens, "
        f"{result['bytes']:,} bytes in {result['seconds']:.1f} s"
    )


def samples(
    model: str,
    prompts: list[str] | None = None,
    chat: bool = True,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Answers (or, without chat, continuations) for a few prompts.

    Args:
        model: Export folder.
        prompts: What to ask; null asks a fixed list.
        chat: Ask as a user of a chat model; false lets a base model go on with the text.
        max_new_tokens: Longest completion in tokens.
        temperature: 0 takes the likeliest token, higher is more varied.
        top_k: Sample among this many likeliest tokens; null or 0 is all.
        seed: The same seed gives the same samples.
        json: Print the result as JSON alone.
    """
    from nanochat_lit.engine.engine import Engine
    from nanochat_lit.engine.export import load_export
    from nanochat_lit.evaluation.samples import BASE_PROMPTS, CHAT_PROMPTS, answer_messages, complete_texts

    engine = Engine(*load_export(model, cast_weights=True))
    asked = list(prompts) if prompts else list(CHAT_PROMPTS if chat else BASE_PROMPTS)
    complete = answer_messages if chat else complete_texts
    completions = complete(engine, asked, max_new_tokens, temperature, top_k, seed)
    if json:
        print(dumps([{"prompt": p, "completion": c} for p, c in zip(asked, completions, strict=True)]))
        return
    for prompt, completion in zip(asked, completions, strict=True):
        print(f"> {prompt}\n{completion}\n")


def tiny_world(
    model: str,
    data: str | None = None,
    split: Literal["val", "test"] = "test",
    per_category: int = 100,
    seed: int = 0,
    max_new_tokens: int = 128,
    show_failures: int = 3,
    out: str | None = None,
    json: bool = False,
) -> None:
    """Accuracy by category on held-out questions of the tiny world, answered greedily.

    Args:
        model: Export folder of a chat model.
        data: A .jsonl file of examination items; null generates them.
        split: Which held-out items to generate.
        per_category: How many of each category to generate.
        seed: Of the generated items.
        max_new_tokens: Longest answer in tokens.
        show_failures: How many wrong answers to print per category.
        out: Folder that gets tiny_world.json, such as runs/X/export_evaluation, where `report` finds it; null writes no file.
        json: Print the result as JSON alone, every failure included.
    """
    from nanochat_lit.data.tiny_world import examination
    from nanochat_lit.engine.engine import Engine
    from nanochat_lit.engine.export import load_export
    from nanochat_lit.evaluation.tiny_world import examine
    from nanochat_lit.tasks.tiny_world import TinyWorldTask

    if per_category < 1:
        raise UserError(f"per_category is {per_category}; it must be at least 1")
    items = TinyWorldTask.load(data).items if data is not None else examination(split, seed, per_category)
    result = examine(Engine(*load_export(model, cast_weights=True)), items, max_new_tokens)
    if out is not None:
        write_json(Path(out) / "tiny_world.json", result)
    if json:
        print(dumps(result))
        return
    for name, category in result["categories"].items():
        print(f"{name:<24}{category['accuracy']:7.1%}  ({category['correct']} of {category['count']})")
    print(f"{'all':<24}{result['accuracy']:7.1%}")
    by_category = itertools.groupby(sorted(result["failures"], key=_category), key=_category)
    for name, failures in by_category:
        for failure in itertools.islice(failures, max(show_failures, 0)):
            print(f"\n[{name}]\n{failure['question']}\nassistant: {failure['answer']}")


def _category(failure: dict[str, Any]) -> str:
    return failure["category"]
