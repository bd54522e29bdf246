"""nanochat-lit evaluate bpb, samples and tiny_world. With --json the last line of stdout is one JSON object."""

import itertools
from json import dumps
from pathlib import Path
from typing import Any, Literal

from nanochat_lit.common.distributed import is_rank_zero
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import write_json

HUGGINGFACE_PIECE = 2048
"""Default chunk length for Hugging Face models, tokens; contexts of 100,000 tokens would exhaust memory."""


def bpb(  # noqa: PLR0913 - every option of the command is a parameter
    model: str,
    data: str,
    max_docs: int | None = None,
    micro_batch_size: int = 8,
    sequence_len: int | None = None,
    device: str | None = None,
    compute_dtype: str = "auto",
    quantize: Literal["int8"] | None = None,
    trust_remote_code: bool = False,
    out: str | None = None,
    json: bool = False,
) -> None:
    """Report bits per byte over whole documents.

    Args:
        model: Export, run folder or .ckpt file, or folder of a Hugging Face causal language model.
        data: File or folder of .txt, .jsonl or .parquet; documents are read in order.
        max_docs: Maximum number of documents; null reads all.
        micro_batch_size: Chunks of sequence_len tokens per forward pass.
        sequence_len: Chunk length, tokens; null is the model's context, capped at 2,048 for a Hugging Face model.
        device: cpu, cuda or mps; null selects the fastest available device.
        compute_dtype: auto, bfloat16, float16 or float32.
        quantize: int8 evaluates the model with 8-bit matrices (CPU only); null disables it.
        trust_remote_code: Run the Python files of a Hugging Face folder, with your permissions.
        out: Folder that gets bpb.json, such as runs/X/export_evaluation, which `report` reads; null writes no file.
        json: Print only JSON.
    """
    from nanochat_lit.data.shards import FileSource
    from nanochat_lit.engine.export import load_export
    from nanochat_lit.evaluation.bpb import evaluate_documents
    from nanochat_lit.evaluation.huggingface import is_huggingface, load_huggingface
    from nanochat_lit.evaluation.ranks import joined_ranks

    source = FileSource(data)  # before the model is loaded, to report a wrong path immediately
    texts = source.documents()
    with joined_ranks() as own_device:
        device = device or (None if own_device is None else str(own_device))
        if is_huggingface(model):
            if quantize:
                raise UserError(f"quantize is {quantize!r}, but {model} is a Hugging Face model; omit the option")
            measured = load_huggingface(model, device, compute_dtype, trust_remote_code)
            tokenizer, context = measured.tokenizer, measured.sequence_len
            pieces = min(context, HUGGINGFACE_PIECE) if sequence_len is None else sequence_len
        else:
            measured, tokenizer = load_export(
                model, device, compute_dtype, cast_weights=True, packed=False, quantize=quantize
            )
            context = measured.config.sequence_len
            pieces = context if sequence_len is None else sequence_len
        if pieces > context:
            raise UserError(f"sequence_len is {pieces}; the model's context is {context} tokens")
        result = evaluate_documents(measured, tokenizer, texts, pieces, max_docs, micro_batch_size)
    if not is_rank_zero():
        return
    whole = {**result, "model": model, "data": data}
    if out is not None:
        write_json(Path(out) / "bpb.json", whole)
    if json:
        print(dumps(whole))
        return
    print(
        f"{result['bpb']:.4f} bits per byte: {result['documents']:,} documents, {result['tokens']:,} tokens, "
        f"{result['bytes']:,} bytes in {result['seconds']:.1f} s{source.left_out()}"
    )


def samples(
    model: str,
    prompts: list[str] | None = None,
    chat: bool = True,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
    json: bool = False,
) -> None:
    """Print answers (with --chat false: continuations) for a few prompts.

    Args:
        model: Export, run folder or .ckpt file, or folder of a Hugging Face causal language model.
        prompts: List of prompts; null uses a built-in list.
        chat: Format each prompt as a user message (for a Hugging Face model with its chat template); false continues
            the text, for base models.
        max_new_tokens: Maximum length of a completion, tokens.
        temperature: Sampling temperature; 0 is greedy.
        top_k: Sample from this many most likely tokens; null or 0 disables the limit.
        seed: Sampling seed.
        trust_remote_code: Run the Python files of a Hugging Face folder, with your permissions.
        json: Print only JSON.
    """
    from nanochat_lit.engine.engine import Engine
    from nanochat_lit.engine.export import load_export
    from nanochat_lit.evaluation.huggingface import is_huggingface, load_huggingface
    from nanochat_lit.evaluation.samples import BASE_PROMPTS, CHAT_PROMPTS, answer_messages, complete_texts

    if not is_rank_zero():  # too few prompts to distribute
        return
    if is_huggingface(model):
        engine = load_huggingface(model, trust_remote_code=trust_remote_code)
    else:
        engine = Engine(*load_export(model, cast_weights=True))
    asked = list(prompts) if prompts else list(CHAT_PROMPTS if chat else BASE_PROMPTS)
    complete = answer_messages if chat else complete_texts
    sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "seed": seed}
    completions = complete(engine, asked, **sampling)
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
    """Report accuracy by category on held-out tiny world questions, with greedy decoding.

    Args:
        model: Export, run folder or .ckpt file of a chat model.
        data: A .jsonl file of held-out items; null generates them.
        split: Held-out split to generate.
        per_category: Number of items to generate per category.
        seed: Seed of the generated items.
        max_new_tokens: Maximum length of an answer, tokens.
        show_failures: Number of wrong answers to print per category.
        out: Folder that gets tiny_world.json, such as runs/X/export_evaluation, which `report` reads; null writes no file.
        json: Print only JSON, including every failure.
    """
    from nanochat_lit.engine.engine import Engine
    from nanochat_lit.engine.export import load_export
    from nanochat_lit.evaluation.huggingface import refuse_huggingface
    from nanochat_lit.evaluation.ranks import joined_ranks
    from nanochat_lit.evaluation.tiny_world import examine
    from nanochat_lit.tasks.tiny_world import TinyWorldTask
    from nanochat_lit.tiny_world import held_out_items

    if per_category < 1:
        raise UserError(f"per_category is {per_category}; it must be at least 1")
    refuse_huggingface(model, "tiny_world")
    items = TinyWorldTask.load(data).items if data is not None else held_out_items(split, seed, per_category)
    with joined_ranks() as own_device:
        result = examine(Engine(*load_export(model, own_device, cast_weights=True)), items, max_new_tokens)
    if not is_rank_zero():
        return
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
