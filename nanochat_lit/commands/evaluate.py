"""nanochat-lit evaluate bpb, samples, tiny_world, core and chat. With --json the last line of stdout is one JSON object."""

import itertools
import sys
from dataclasses import asdict
from json import dumps
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nanochat_lit.common.distributed import is_rank_zero
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import write_json

if TYPE_CHECKING:
    import torch

    from nanochat_lit.evaluation.score_report import ResultsFile, TaskResult

HUGGINGFACE_PIECE = 2048
"""Default chunk length for Hugging Face models, tokens; contexts of 100,000 tokens would exhaust memory."""


def core(
    model: str,
    bundle: str | None = None,
    max_per_task: int | None = None,
    tasks: list[str] | None = None,
    out: str | None = None,
    bundle_sha256: str | None = None,
    device: str | None = None,
    compute_dtype: str = "auto",
    trust_remote_code: bool = False,
    json: bool = False,
) -> None:
    """Evaluate CORE, the mean centered accuracy over 22 few-shot tasks, with both versions of the baselines.

    Writes core.json, core.md and core.png to --out. After an interruption the same command resumes with the unfinished
    tasks. Under torchrun the examples are distributed over the processes.

    Args:
        model: Export, run folder, .ckpt file, hf://OWNER/NAME, or folder of a Hugging Face causal language model.
        bundle: Folder of an evaluation bundle (core.yaml, eval_meta_data.csv, eval_data/); null downloads it once. If
            tasks are missing, the mean of the others is marked as partial.
        max_per_task: Maximum number of examples per task, sampled at random; null uses all.
        tasks: Tasks to run, for example '["copa", "piqa"]'; null runs all tasks of the bundle.
        out: Folder for the results; null is the model's folder with "_evaluation" added to its name, and
            runs/NAME/export_evaluation for a model on the hub.
        bundle_sha256: Expected checksum of the downloaded bundle; null skips the check.
        device: cpu, cuda or mps; null selects the fastest available device.
        compute_dtype: auto, bfloat16, float16 or float32.
        trust_remote_code: Run the Python files of a Hugging Face folder, with your permissions.
        json: Print only JSON.
    """
    from nanochat_lit.common.distributed import joined_ranks
    from nanochat_lit.evaluation.core import bundle_digest, evaluate_core, fetch_bundle, load_bundle, summarize_core
    from nanochat_lit.evaluation.huggingface import HuggingFaceScorer
    from nanochat_lit.evaluation.scoring import GPTScorer

    # before the model is loaded, to report data errors immediately
    folder = Path(bundle) if bundle is not None else fetch_bundle(sha256=bundle_sha256)
    core_tasks = load_bundle(folder, max_per_task, tasks)
    with joined_ranks() as own_device:
        loaded, tokenizer, is_foreign, dtype = _load(
            model, device or own_device, compute_dtype, trust_remote_code, packed=False
        )
        scorer = HuggingFaceScorer(loaded) if is_foreign else GPTScorer(loaded)
        key = {"data": bundle_digest(core_tasks), "compute_dtype": dtype}
        results = _results_file("core", model, out, key)
        outcome = evaluate_core(scorer, tokenizer, core_tasks, results, _report_task)
    if not is_rank_zero():
        return
    about = {"model": model, "bundle": str(folder), "max_per_task": max_per_task, "compute_dtype": dtype}
    _finish(summarize_core(core_tasks, outcome, about), results, _out_folder(model, out), json)


def chat(  # noqa: PLR0913 - every option of the command is a parameter
    model: str,
    tasks: list[str] | None = None,
    paths: dict[str, str] | None = None,
    max_per_task: int | None = None,
    num_samples: int = 1,
    k: int = 1,
    temperature: float = 0.0,
    top_k: int | None = None,
    max_new_tokens: int = 512,
    seed: int = 0,
    out: str | None = None,
    allow_unsafe_code: bool = False,
    device: str | None = None,
    compute_dtype: str = "auto",
    trust_remote_code: bool = False,
    json: bool = False,
) -> None:
    """Evaluate ChatCORE, the mean centered accuracy over ARC-Easy, ARC-Challenge, MMLU, GSM8K and HumanEval.

    Multiple choice compares the probabilities of the letters; other tasks generate an answer, with the calculator tool.
    HumanEval programs run in a sandbox. Without a sandbox HumanEval is skipped and the mean is marked as partial.
    Writes chat_core.json, chat_core.md and chat_core.png to --out. After an interruption the same command resumes with
    the unfinished tasks. Under torchrun the questions are distributed over the processes.

    Args:
        model: Export, run folder, .ckpt file or hf://OWNER/NAME of a chat model, or folder of a Hugging Face causal
            language model. The latter is prompted with its chat template (plain text without one), has no calculator, and the prompt states
            the answer format.
        tasks: Tasks to run, for example '["gsm8k", "count_letters"]'. One of arc_easy, arc_challenge, mmlu, gsm8k,
            humaneval; or count_letters, spell_word, identity, which are reported but excluded from the mean.
        paths: Local files of tasks, for example '{"gsm8k": "test.jsonl"}'; other tasks are downloaded from the Hugging
            Face hub.
        max_per_task: Maximum number of questions per task, sampled at random; null uses all.
        num_samples: Answers per generative question; the accuracy is their mean.
        k: Also report pass@k, the fraction of questions that at least one of k samples solves; requires num_samples >=
            k.
        temperature: Sampling temperature; 0 is greedy.
        top_k: Sample from this many most likely tokens; null or 0 disables the limit.
        max_new_tokens: Maximum length of an answer, tokens.
        seed: Sampling seed.
        out: Folder for the results; null is the model's folder with "_evaluation" added to its name, and
            runs/NAME/export_evaluation for a model on the hub.
        allow_unsafe_code: Run HumanEval programs even without a sandbox, with your permissions.
        device: cpu, cuda or mps; null selects the fastest available device.
        compute_dtype: auto, bfloat16, float16 or float32.
        trust_remote_code: Run the Python files of a Hugging Face folder, with your permissions.
        json: Print only JSON.
    """
    from nanochat_lit.common.distributed import joined_ranks
    from nanochat_lit.engine.engine import Engine
    from nanochat_lit.evaluation.answerer import Answering, EngineAnswerer, HuggingFaceAnswerer
    from nanochat_lit.evaluation.chat_core import (
        chat_digest,
        code_runner,
        evaluate_chat,
        load_chat_tasks,
        summarize_chat,
    )

    if not 1 <= k <= max(num_samples, 1):
        raise UserError(f"k is {k}; use 1 to {num_samples} (num_samples)")
    answering = Answering(
        num_samples=num_samples, temperature=temperature, top_k=top_k or 0, max_new_tokens=max_new_tokens, seed=seed
    )
    chat_tasks = load_chat_tasks(tasks, paths, max_per_task, code_runner(tasks, allow_unsafe_code))
    with joined_ranks() as own_device:
        loaded, tokenizer, is_foreign, dtype = _load(model, device or own_device, compute_dtype, trust_remote_code)
        answerer = HuggingFaceAnswerer(loaded) if is_foreign else EngineAnswerer(Engine(loaded, tokenizer))
        foreign = {True: "the tokenizer's chat template", False: "plain text, as it has no template"}
        prompts = foreign[tokenizer.has_template] if is_foreign else "nanochat control tokens"
        key = {"data": chat_digest(chat_tasks), "compute_dtype": dtype, "answering": asdict(answering)}
        results = _results_file("chat_core", model, out, key)
        outcome = evaluate_chat(answerer, chat_tasks, answering, results, _report_task)
    if not is_rank_zero():
        return
    about = {"model": model, "prompts": prompts, "paths": paths, "max_per_task": max_per_task, "compute_dtype": dtype}
    report = summarize_chat(chat_tasks, outcome, {**about, **asdict(answering)}, k)
    _finish(report, results, _out_folder(model, out), json)


def _load(
    model: str, device: "str | torch.device | None", compute_dtype: str, trust_remote_code: bool, **options: Any
) -> tuple[Any, Any, bool, str]:
    """Return a model, its tokenizer, whether it is a Hugging Face model, and the name of its compute dtype."""
    from nanochat_lit.engine.export import load_export
    from nanochat_lit.evaluation.huggingface import is_huggingface, load_huggingface

    if is_foreign := is_huggingface(model):
        loaded = load_huggingface(model, device, compute_dtype, trust_remote_code)
        tokenizer = loaded.tokenizer
    else:
        loaded, tokenizer = load_export(model, device, compute_dtype, cast_weights=True, **options)
    return loaded, tokenizer, is_foreign, str(loaded.compute_dtype).removeprefix("torch.")


def _write(result: dict[str, Any], out: str | None, name: str, json: bool) -> bool:
    """Write a result into the folder, if there is one; print it as JSON and return True if requested."""
    if out is not None:
        write_json(Path(out) / f"{name}.json", result)
    if json:
        print(dumps(result))
    return json


def _out_folder(model: str, out: str | None) -> Path:
    from nanochat_lit.engine.export import find_model
    from nanochat_lit.engine.hub import SCHEME, HubModel

    if out is not None:
        return Path(out)
    if model.startswith(SCHEME):
        return HubModel.parse(model).run_folder / "export_evaluation"
    folder = find_model(model).resolve()
    return folder.with_name(f"{folder.stem if folder.is_file() else folder.name}_evaluation")


def _results_file(metric: str, model: str, out: str | None, key: dict[str, Any]) -> "ResultsFile":
    """Open the results of this evaluation; results of another model, data or settings are discarded."""
    from nanochat_lit.common.downloads import file_sha256
    from nanochat_lit.engine.export import find_model
    from nanochat_lit.evaluation.score_report import ResultsFile

    path = _out_folder(model, out) / f"{metric}_progress.json" if is_rank_zero() else None
    patterns = ("config.json", "generation_config.json", "*.safetensors", "tokenizer*", "chat_template*")
    source = find_model(model)
    read = [source] if source.is_file() else [path for pattern in patterns for path in source.glob(pattern)]
    files = {path.name: file_sha256(path)[:16] for path in sorted(read) if path.is_file()}
    results = ResultsFile(path, {**files, **key})
    if results.replaces_other:
        print(f"{path} holds another evaluation; starting over", file=sys.stderr)
    return results


def _report_task(result: "TaskResult") -> None:
    count = len(result.correct)
    line = f"{result.label}: accuracy {result.accuracy:.4f}, {count:,} examples in {result.seconds:.1f} s"
    print(line, file=sys.stderr, flush=True)


def _finish(report: dict[str, Any], results: "ResultsFile", folder: Path, json: bool) -> None:
    from nanochat_lit.evaluation.score_report import aligned, headline, legend, table_rows, write_report

    write_report(folder, report)
    results.remove()
    if json:
        print(dumps(report))
        return
    print(aligned(table_rows(report)))
    print("\n".join(f"  {line}" for line in legend(report)))
    print("\n".join(headline(report)))
    print(f"written to {folder}/{report['metric']}.json, .md and .png")


def bpb(  # noqa: PLR0913 - every option of the command is a parameter
    model: str,
    data: str,
    max_docs: int | None = None,
    micro_batch_size: int = 8,
    sequence_len: int | None = None,
    device: str | None = None,
    compute_dtype: str = "auto",
    quantize: Literal["int8", "int4"] | None = None,
    trust_remote_code: bool = False,
    out: str | None = None,
    json: bool = False,
) -> None:
    """Report bits per byte over whole documents.

    Args:
        model: Export, run folder, .ckpt file, hf://OWNER/NAME, or folder of a Hugging Face causal language model.
        data: File or folder of .txt, .jsonl or .parquet; documents are read in order.
        max_docs: Maximum number of documents; null reads all.
        micro_batch_size: Chunks of sequence_len tokens per forward pass.
        sequence_len: Chunk length, tokens; null is the model's context, capped at 2,048 for a Hugging Face model.
        device: cpu, cuda or mps; null selects the fastest available device.
        compute_dtype: auto, bfloat16, float16 or float32.
        quantize: int8 evaluates the model with 8-bit matrices, int4 with 4-bit ones (CPU only); null disables it.
        trust_remote_code: Run the Python files of a Hugging Face folder, with your permissions.
        out: Folder that gets bpb.json, such as runs/X/export_evaluation, which `report` reads; null writes no file.
        json: Print only JSON.
    """
    from nanochat_lit.common.distributed import joined_ranks
    from nanochat_lit.data.shards import FileSource
    from nanochat_lit.evaluation.bpb import evaluate_documents
    from nanochat_lit.evaluation.huggingface import is_huggingface

    source = FileSource(data)  # before the model is loaded, to report a wrong path immediately
    texts = source.documents()
    with joined_ranks() as own_device:
        device = device or (None if own_device is None else str(own_device))
        if quantize and is_huggingface(model):
            raise UserError(f"quantize is {quantize!r}, but {model} is a Hugging Face model; omit the option")
        measured, tokenizer, is_foreign, _ = _load(
            model, device, compute_dtype, trust_remote_code, packed=False, quantize=quantize
        )
        context = measured.sequence_len if is_foreign else measured.config.sequence_len
        pieces = sequence_len
        if pieces is None:
            pieces = min(context, HUGGINGFACE_PIECE) if is_foreign else context
        if pieces > context:
            raise UserError(f"sequence_len is {pieces}; the model's context is {context} tokens")
        result = evaluate_documents(measured, tokenizer, texts, pieces, max_docs, micro_batch_size)
    if not is_rank_zero():
        return
    if _write({**result, "model": model, "data": data}, out, "bpb", json):
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
        model: Export, run folder, .ckpt file, hf://OWNER/NAME, or folder of a Hugging Face causal language model.
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
    from nanochat_lit.evaluation.samples import BASE_PROMPTS, CHAT_PROMPTS, answer_messages, complete_texts

    if not is_rank_zero():  # too few prompts to distribute
        return
    loaded, tokenizer, is_foreign, _ = _load(model, None, "auto", trust_remote_code)
    engine = loaded if is_foreign else Engine(loaded, tokenizer)
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
        model: Export, run folder, .ckpt file or hf://OWNER/NAME of a chat model.
        data: A .jsonl file of held-out items; null generates them.
        split: Held-out split to generate.
        per_category: Number of items to generate per category.
        seed: Seed of the generated items.
        max_new_tokens: Maximum length of an answer, tokens.
        show_failures: Number of wrong answers to print per category.
        out: Folder that gets tiny_world.json, such as runs/X/export_evaluation, which `report` reads; null writes no file.
        json: Print only JSON, including every failure.
    """
    from nanochat_lit.common.distributed import joined_ranks
    from nanochat_lit.engine.engine import Engine
    from nanochat_lit.engine.export import load_export
    from nanochat_lit.evaluation.huggingface import refuse_huggingface
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
    if _write(result, out, "tiny_world", json):
        return
    for name, category in result["categories"].items():
        print(f"{name:<24}{category['accuracy']:7.1%}  ({category['correct']} of {category['count']})")
    print(f"{'all':<24}{result['accuracy']:7.1%}")
    category_of = itemgetter("category")
    for name, failures in itertools.groupby(sorted(result["failures"], key=category_of), key=category_of):
        for failure in itertools.islice(failures, max(show_failures, 0)):
            print(f"\n[{name}]\n{failure['question']}\nassistant: {failure['answer']}")
