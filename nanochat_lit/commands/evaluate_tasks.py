"""nanochat-lit evaluate core and chat: benchmark accuracies with confidence intervals, a table and a plot."""

import sys
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat_lit.common.distributed import is_rank_zero, world_size
from nanochat_lit.common.errors import UserError

if TYPE_CHECKING:
    import torch

    from nanochat_lit.evaluation.answerer import Answerer
    from nanochat_lit.evaluation.core_prompts import Encoder
    from nanochat_lit.evaluation.scoring import RowScorer
    from nanochat_lit.evaluation.task_results import ResultsFile, TaskResult


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
        model: Export, run folder or .ckpt file, or folder of a Hugging Face causal language model.
        bundle: Folder of an evaluation bundle (core.yaml, eval_meta_data.csv, eval_data/); null downloads it once. If
            tasks are missing, the mean of the others is marked as partial.
        max_per_task: Maximum number of examples per task, sampled at random; null uses all.
        tasks: Tasks to run, for example '["copa", "piqa"]'; null runs all tasks of the bundle.
        out: Folder for the results; null is the model's folder with "_evaluation" added to its name.
        bundle_sha256: Expected checksum of the downloaded bundle; null skips the check.
        device: cpu, cuda or mps; null selects the fastest available device.
        compute_dtype: auto, bfloat16, float16 or float32.
        trust_remote_code: Run the Python files of a Hugging Face folder, with your permissions.
        json: Print only JSON.
    """
    from nanochat_lit.evaluation.bundle_download import fetch_bundle
    from nanochat_lit.evaluation.core_bundle import BASELINES, CORE_LABELS, load_bundle
    from nanochat_lit.evaluation.core_metric import bundle_digest, evaluate_core
    from nanochat_lit.evaluation.ranks import joined_ranks
    from nanochat_lit.evaluation.score_report import summarize

    # before the model is loaded, to report data errors immediately
    folder = Path(bundle) if bundle is not None else fetch_bundle(sha256=bundle_sha256)
    core_tasks = load_bundle(folder, max_per_task, tasks)
    with joined_ranks() as own_device:
        scorer, tokenizer, dtype = _scorer(model, device or own_device, compute_dtype, trust_remote_code)
        key = {"data": bundle_digest(core_tasks), "compute_dtype": dtype}
        results = _results_file("core", model, out, key)
        outcome = evaluate_core(scorer, tokenizer, core_tasks, results, _report_task, scorer.device)
    if not is_rank_zero():
        return
    about = {"model": model, "bundle": str(folder), "max_per_task": max_per_task, "compute_dtype": dtype}
    baselines = {version: {task.label: task.baselines()[version] for task in core_tasks} for version in BASELINES}
    report = summarize("core", CORE_LABELS, outcome, baselines, {**about, "world_size": world_size()})
    _finish(report, results, _out_folder(model, out), json)


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
        model: Export, run folder or .ckpt file of a chat model, or folder of a Hugging Face causal language model. The
            latter is prompted with its chat template (plain text without one), has no calculator, and the prompt states
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
        out: Folder for the results; null is the model's folder with "_evaluation" added to its name.
        allow_unsafe_code: Run HumanEval programs even without a sandbox, with your permissions.
        device: cpu, cuda or mps; null selects the fastest available device.
        compute_dtype: auto, bfloat16, float16 or float32.
        trust_remote_code: Run the Python files of a Hugging Face folder, with your permissions.
        json: Print only JSON.
    """
    from nanochat_lit.evaluation.answerer import Answering
    from nanochat_lit.evaluation.chat_core import chat_digest, evaluate_chat
    from nanochat_lit.evaluation.chat_tasks import CHAT_BASELINES, code_runner, load_chat_tasks
    from nanochat_lit.evaluation.ranks import joined_ranks
    from nanochat_lit.evaluation.score_report import summarize

    if not 1 <= k <= max(num_samples, 1):
        raise UserError(f"k is {k}; use 1 to {num_samples} (num_samples)")
    answering = Answering(
        num_samples=num_samples, temperature=temperature, top_k=top_k, max_new_tokens=max_new_tokens, seed=seed
    )
    chat_tasks = load_chat_tasks(tasks, paths, max_per_task, code_runner(tasks, allow_unsafe_code))
    with joined_ranks() as own_device:
        answerer, dtype, prompts = _answerer(model, device or own_device, compute_dtype, trust_remote_code)
        key = {"data": chat_digest(chat_tasks), "compute_dtype": dtype, "answering": asdict(answering)}
        results = _results_file("chat_core", model, out, key)
        outcome = evaluate_chat(answerer, chat_tasks, answering, results, _report_task)
    if not is_rank_zero():
        return
    about = {"model": model, "prompts": prompts, "paths": paths, "max_per_task": max_per_task, "compute_dtype": dtype}
    baselines = {"chat_core": {task.label: task.baseline for task in chat_tasks}}
    about |= {**asdict(answering), "world_size": world_size()}
    report = summarize("chat_core", list(CHAT_BASELINES), outcome, baselines, about, k)
    _finish(report, results, _out_folder(model, out), json)


def _scorer(
    model: str, device: "str | torch.device | None", compute_dtype: str, trust_remote_code: bool
) -> "tuple[RowScorer, Encoder, str]":
    """Return the scorer and tokenizer of a model, and the name of its compute dtype."""
    from nanochat_lit.engine.export import load_export
    from nanochat_lit.evaluation.huggingface import HuggingFaceScorer, is_huggingface, load_huggingface
    from nanochat_lit.evaluation.scoring import GPTScorer

    if is_huggingface(model):
        other = load_huggingface(model, device, compute_dtype, trust_remote_code)
        scorer, tokenizer, dtype = HuggingFaceScorer(other), other.tokenizer, other.compute_dtype
    else:
        gpt, tokenizer = load_export(model, device, compute_dtype, cast_weights=True, packed=False)
        scorer, dtype = GPTScorer(gpt), gpt.compute_dtype
    return scorer, tokenizer, str(dtype).removeprefix("torch.")


def _answerer(
    model: str, device: "str | torch.device | None", compute_dtype: str, trust_remote_code: bool
) -> "tuple[Answerer, str, str]":
    """Return the answerer, the name of its compute dtype, and a description of the prompt format."""
    from nanochat_lit.engine.engine import Engine
    from nanochat_lit.engine.export import load_export
    from nanochat_lit.evaluation.answerer import EngineAnswerer
    from nanochat_lit.evaluation.huggingface import is_huggingface, load_huggingface
    from nanochat_lit.evaluation.huggingface_chat import HuggingFaceAnswerer

    if is_huggingface(model):
        other = load_huggingface(model, device, compute_dtype, trust_remote_code)
        prompts = (
            "the tokenizer's chat template" if other.tokenizer.has_template else "plain text, as it has no template"
        )
        answerer, dtype = HuggingFaceAnswerer(other), other.compute_dtype
    else:
        gpt, tokenizer = load_export(model, device, compute_dtype, cast_weights=True)
        answerer, dtype, prompts = EngineAnswerer(Engine(gpt, tokenizer)), gpt.compute_dtype, "nanochat control tokens"
    return answerer, str(dtype).removeprefix("torch."), prompts


def _out_folder(model: str, out: str | None) -> Path:
    from nanochat_lit.engine.export import find_model

    folder = find_model(model).resolve()
    return (
        folder.with_name(f"{folder.stem if folder.is_file() else folder.name}_evaluation") if out is None else Path(out)
    )


def _results_file(metric: str, model: str, out: str | None, key: dict[str, Any]) -> "ResultsFile":
    """Open the results of this evaluation; results of another model, data or settings are discarded."""
    from nanochat_lit.engine.export import find_model
    from nanochat_lit.evaluation.task_results import ResultsFile, file_digest

    path = _out_folder(model, out) / f"{metric}_progress.json" if is_rank_zero() else None
    patterns = ("config.json", "generation_config.json", "*.safetensors", "tokenizer*", "chat_template*")
    source = find_model(model)
    read = (
        [source]
        if source.is_file()
        else [path for pattern in patterns for path in source.glob(pattern) if path.is_file()]
    )
    files = {path.name: file_digest(path) for path in sorted(read)}
    results = ResultsFile(path, {**files, **key})
    if results.replaces_other:
        print(f"{path} holds another evaluation; starting over", file=sys.stderr)
    return results


def _report_task(result: "TaskResult") -> None:
    count = len(result.correct)
    line = f"{result.label}: accuracy {result.accuracy:.4f}, {count:,} examples in {result.seconds:.1f} s"
    print(line, file=sys.stderr, flush=True)


def _finish(report: dict[str, Any], results: "ResultsFile", folder: Path, json: bool) -> None:
    from nanochat_lit.evaluation.score_report import headline, legend, plain_table, write_report

    write_report(folder, report)
    results.remove()
    if json:
        print(dumps(report))
        return
    print(plain_table(report))
    print("\n".join(f"  {line}" for line in legend(report)))
    print("\n".join(headline(report)))
    print(f"written to {folder}/{report['metric']}.json, .md and .png")
