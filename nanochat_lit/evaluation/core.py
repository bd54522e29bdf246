"""CORE: the mean centered accuracy over 22 tasks, few-shot, for base models (Li et al. 2024, DCLM).

The evaluation bundle (core.yaml, eval_meta_data.csv, eval_data/) is checked on loading, before any model runs. Its
records become token sequences with a scored part, as implemented in nanochat:

multiple_choice     one context, several continuations    scored: from the first token that differs between choices
schema              several contexts, one continuation    scored: the common suffix of all sequences
language_modeling   one context, one continuation         scored: the continuation's tokens

https://arxiv.org/abs/2406.11794
"""

import csv
import shutil
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch

from nanochat_lit.common.distributed import rank, sum_over_ranks, world_size
from nanochat_lit.common.downloads import download, file_sha256, locked
from nanochat_lit.common.errors import UserError, check_at_least_one
from nanochat_lit.common.paths import atomic_write, cache_folder
from nanochat_lit.evaluation.huggingface import TextTokenizer
from nanochat_lit.evaluation.score_report import ResultsFile, TaskResult, digest, measure_tasks, summarize
from nanochat_lit.evaluation.scoring import Example, RowScore, RowScorer, common_prefix
from nanochat_lit.tasks.rows import missing_text, read_jsonl, wrong_choices, wrong_place

CORE_LABELS = (
    "hellaswag_zeroshot", "jeopardy", "bigbench_qa_wikidata", "arc_easy", "arc_challenge", "copa", "commonsense_qa",
    "piqa", "openbook_qa", "lambada_openai", "hellaswag", "winograd", "winogrande", "bigbench_dyck_languages",
    "agi_eval_lsat_ar", "bigbench_cs_algorithms", "bigbench_operators", "bigbench_repeat_copy_logic", "squad", "coqa",
    "boolq", "bigbench_language_identification",
)  # fmt: skip
"""Tasks of the CORE mean."""

BASELINES = {
    "v1": {"commonsense_qa": 0.20, "bigbench_language_identification": 0.091, "agi_eval_lsat_ar": 0.20},
    "v2": {"commonsense_qa": 0.403, "bigbench_language_identification": 0.25, "agi_eval_lsat_ar": 0.25},
}
"""Differences of the two versions of DCLM's baselines: v1 until September 2025 (nanochat's leaderboard), v2 since."""

KINDS = ("multiple_choice", "schema", "language_modeling")
SHUFFLE_SEED = 1337


MAX_EXPANSION = 100
"""Maximum ratio of unpacked to packed size; the bundle's ratio is 4."""
BUNDLE_URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"


def fetch_bundle(
    cache: Path | None = None, sha256: str | None = None, url: str = BUNDLE_URL, fetch: Callable[..., object] = download
) -> Path:
    """Return the folder of the bundle, downloading it once; concurrent processes wait for the first.

    `cache` None is the user's cache folder; `sha256` is that of the archive, also of an earlier download, and None only
    verifies the archive's internal checksums; `fetch` is called with (url, path, sha256).
    """
    cache = cache_folder() if cache is None else cache
    folder, record = cache / "eval_bundle", cache / "eval_bundle.sha256"
    with locked(cache / "eval_bundle.lock"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=cache, prefix=".eval_bundle.") as workplace:
                archive = Path(workplace) / "eval_bundle.zip"
                try:
                    fetch(url, archive, sha256)
                except UserError as error:
                    raise UserError(
                        f"{error}; download it on another machine and give the folder with bundle"
                    ) from None
                found = file_sha256(archive)
                _unpack(archive, Path(workplace) / "unpacked", url)
                with atomic_write(record, "w") as file:
                    file.write(found + "\n")
                shutil.move(Path(workplace) / "unpacked" / "eval_bundle", folder)
        kept = record.read_text(encoding="utf-8").strip() if record.is_file() else "unknown"
        if sha256 is not None and kept != sha256.lower():
            raise UserError(
                f"the bundle in {folder} came from an archive with the sha256 {kept}, not {sha256}; delete it"
            )
    return folder


def _unpack(archive: Path, folder: Path, url: str) -> None:
    try:
        with zipfile.ZipFile(archive) as file:
            unpacked = sum(entry.file_size for entry in file.infolist())  # zipfile never extracts more than this
            if unpacked > MAX_EXPANSION * archive.stat().st_size:
                raise UserError(f"{url} would unpack to {unpacked:,} bytes; it is not the CORE bundle")
            file.extractall(folder)  # verifies checksums; names cannot point outside the folder
    except (zipfile.BadZipFile, zlib.error, OSError) as error:
        raise UserError(f"{url} is not a complete zip file ({error})") from None
    if not (folder / "eval_bundle" / "core.yaml").is_file():
        raise UserError(f"{url} does not contain eval_bundle/core.yaml; it is not the CORE bundle")


class CoreTask(NamedTuple):
    """One task of a bundle."""

    label: str  # name of the task
    kind: str  # multiple_choice, schema or language_modeling
    num_fewshot: int  # number of few-shot examples
    delimiter: str  # delimiter between context and continuation
    baseline: float  # accuracy of random guessing from the bundle, 0 to 1
    rows: list[dict[str, Any]]  # records in evaluation order: shuffled, then capped

    def baselines(self) -> dict[str, float]:
        """Baseline by version."""
        return {version: changed.get(self.label, self.baseline) for version, changed in BASELINES.items()}


def load_bundle(
    folder: str | Path, max_per_task: int | None = None, labels: Sequence[str] | None = None
) -> list[CoreTask]:
    """Load the CORE tasks of a bundle (core.yaml, eval_meta_data.csv, eval_data/) in its order.

    Without `labels`, tasks whose files are missing are left out; `max_per_task` limits the records of each. UserErrors
    name files, records and tasks that are missing or malformed, and tasks with too few records for their few-shot
    examples.
    """
    folder = Path(folder)
    check_at_least_one(max_per_task=max_per_task)
    entries = _entries(folder / "core.yaml")
    baselines = _baselines(folder / "eval_meta_data.csv")
    data = folder / "eval_data"
    there = {
        entry["label"]: entry
        for entry in entries
        if entry["label"] in CORE_LABELS and (data / entry["dataset_uri"]).is_file()
    }
    if not there:
        raise UserError(f"{folder} has no CORE tasks: none of the files in core.yaml exists in {data}")
    if unknown := sorted(set(labels or ()) - set(there)):
        raise UserError(f"{folder} does not have the CORE task {', '.join(unknown)}; available: {', '.join(there)}")
    chosen = [entry for label, entry in there.items() if not labels or label in labels]
    return [_task(entry, data, baselines, max_per_task) for entry in chosen]


def _entries(path: Path) -> list[dict[str, Any]]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give the folder of an evaluation bundle, or omit the option") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())[:120]})") from None
    entries = content.get("icl_tasks") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: has no list of tasks called icl_tasks")
    for number, entry in enumerate(entries, 1):
        where = f"{path}: task {number}"
        if not isinstance(entry, dict):
            raise UserError(f"{where} is not a mapping")
        if problem := missing_text(entry, "label", "dataset_uri", "icl_task_type"):
            raise UserError(f"{where}: {problem}")
        if entry["icl_task_type"] not in KINDS:
            raise UserError(f"{where}: icl_task_type is {entry['icl_task_type']!r}; use one of {', '.join(KINDS)}")
        shots = entry.get("num_fewshot")
        if not isinstance(shots, list) or not shots or not isinstance(shots[0], int) or shots[0] < 0:
            raise UserError(f"{where}: num_fewshot must be a list that begins with a number, got {shots!r}")
    labels = [entry["label"] for entry in entries]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise UserError(f"{path}: names {', '.join(twice)} twice")
    return entries


def _baselines(path: Path) -> dict[str, float]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            table = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); it must contain the baselines of the tasks") from None
    return dict(_baseline(row, f"{path}:{number}") for number, row in enumerate(table, 2))


def _baseline(row: dict[str, str], where: str) -> tuple[str, float]:
    try:
        baseline = float(row["Random baseline"]) / 100.0
        if not 0 <= baseline < 1:
            raise ValueError
        return row["Eval Task"], baseline
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{where}: needs the columns 'Eval Task' and 'Random baseline', a percentage from 0 to below 100"
        ) from None


def _task(entry: dict[str, Any], data: Path, baselines: dict[str, float], max_per_task: int | None) -> CoreTask:
    label, kind, num_fewshot = entry["label"], entry["icl_task_type"], entry["num_fewshot"][0]
    path = data / entry["dataset_uri"]
    if label not in baselines:
        raise UserError(f"eval_meta_data.csv has no baseline for the task {label}")
    rows, lines = read_jsonl(path)
    for row, line in zip(rows, lines, strict=True):
        if problem := _problem(kind, row):
            raise UserError(f"{path}:{line}: {problem}")
    Random(SHUFFLE_SEED).shuffle(rows)
    kept = rows[:max_per_task]  # few-shot examples are drawn from these too, as in nanochat
    if len(kept) <= num_fewshot:
        cap = "" if len(kept) == len(rows) else f" (max_per_task; raise it to {num_fewshot + 1} or more)"
        raise UserError(
            f"the task {label} has {len(kept)} records{cap} and uses {num_fewshot} others as few-shot examples; "
            f"it needs at least {num_fewshot + 1}"
        )
    return CoreTask(
        label=label,
        kind=kind,
        num_fewshot=num_fewshot,
        delimiter=entry.get("continuation_delimiter", " "),
        baseline=baselines[label],
        rows=kept,
    )


def _problem(kind: str, row: dict[str, Any]) -> str | None:
    if kind == "language_modeling":
        return missing_text(row, "context", "continuation")
    if kind == "schema":
        problem = missing_text(row, "continuation") or wrong_choices(row.get("context_options"))
        return problem or wrong_place("gold", row.get("gold"), row["context_options"])
    problem = missing_text(row, "query") or wrong_choices(row.get("choices"))
    return problem or wrong_place("gold", row.get("gold"), row["choices"])


FEWSHOT_SEED = 1234


def fewshot_rows(task: CoreTask, index: int) -> list[dict[str, Any]]:
    """Return the few-shot examples of record `index`: other records, drawn with a seed per record."""
    places = Random(FEWSHOT_SEED + index).sample(range(len(task.rows) - 1), task.num_fewshot)
    return [task.rows[place + (place >= index)] for place in places]  # skips the record itself


def prompts(task: CoreTask, index: int) -> list[str]:
    """Return the texts of record `index`: one per choice or context, or the text without and with its continuation."""
    row, delimiter = task.rows[index], task.delimiter
    shown = "".join(_solved(task, other) + "\n\n" for other in fewshot_rows(task, index))
    if task.kind == "multiple_choice":
        return [f"{shown}{row['query']}{delimiter}{choice}" for choice in row["choices"]]
    if task.kind == "schema":
        return [f"{shown}{context}{delimiter}{row['continuation']}" for context in row["context_options"]]
    context = f"{shown}{row['context'].strip()}{delimiter}"
    # stripped: a trailing space would be a separate token, unlike in the text with the continuation
    return [context.strip(), context + row["continuation"]]


def _solved(task: CoreTask, row: dict[str, Any]) -> str:
    if task.kind == "multiple_choice":
        return f"{row['query']}{task.delimiter}{row['choices'][row['gold']]}"
    context = row["context_options"][row["gold"]] if task.kind == "schema" else row["context"].strip()
    return f"{context}{task.delimiter}{row['continuation']}"


def encode_examples(
    task: CoreTask, indices: Sequence[int], tokenizer: TextTokenizer, sequence_len: int
) -> tuple[list[Example], int]:
    """Tokenize records of a task for scoring; return the examples, and the number of truncated ones.

    Sequences longer than the context are truncated on the left. All sequences of an example lose the same number of
    tokens, so that they keep a common prefix.
    """
    texts = [prompts(task, index) for index in indices]
    encoded = iter(tokenizer.encode_batch([text for group in texts for text in group], 2))
    examples, num_cut = [], 0
    for group in texts:
        rows = [np.array([tokenizer.bos_id, *next(encoded)], dtype=np.int32) for _ in group]
        rows, starts = scored_parts(task.kind, rows)
        excess = max(map(len, rows)) - sequence_len
        if excess > 0:
            num_cut += 1
            # a scored part longer than the context is truncated too
            starts = [max(1, start - excess) for start in starts]
            rows = [row[min(excess, len(row) - 2) :] for row in rows]
            starts = [min(start, len(row) - 1) for start, row in zip(starts, rows, strict=True)]
        examples.append(Example(rows=rows, starts=starts))
    return examples, num_cut


def scored_parts(kind: str, rows: list[np.ndarray]) -> tuple[list[np.ndarray], list[int]]:
    """Return the sequences to run through the model, and where the scored part of each begins.

    At least the last token of every sequence is scored (a choice may be a prefix of another), and never <|bos|>.
    """
    if kind == "schema":
        common = common_prefix([row[::-1] for row in rows])
        return rows, [max(1, len(row) - common) for row in rows]
    start = common_prefix(rows)
    if kind == "language_modeling":
        # the prompt without continuation is a prefix of the one with it, unless a token spans the boundary
        rows = rows[1:]
    start = max(1, min(start, *(len(row) - 1 for row in rows)))
    return rows, [start] * len(rows)


def is_right(task: CoreTask, index: int, scores: Sequence[RowScore]) -> bool:
    """Return whether the model answers record `index` correctly; ties select the first choice."""
    if task.kind == "language_modeling":
        return scores[0].is_greedy
    losses = [score.mean_loss for score in scores]
    return losses.index(min(losses)) == task.rows[index]["gold"]


EXAMPLES_PER_WINDOW = 2048
"""Number of examples to tokenize at a time; large, so that examples of equal lengths can be batched."""


def evaluate_core(
    scorer: RowScorer,
    tokenizer: TextTokenizer,
    tasks: Sequence[CoreTask],
    results: ResultsFile | None = None,
    on_task: Callable[[TaskResult], None] | None = None,
) -> list[TaskResult]:
    """Evaluate every task and return one result per task; the ranks of a process group share the examples.

    `results` and `on_task` are those of `measure_tasks`.
    """
    return measure_tasks(tasks, lambda task: evaluate_task(scorer, tokenizer, task), results, on_task)


def evaluate_task(scorer: RowScorer, tokenizer: TextTokenizer, task: CoreTask) -> TaskResult:
    """Evaluate one task."""
    start_s = time.perf_counter()
    # 1 per correct record, then the number of truncated ones
    counts = torch.zeros(len(task.rows) + 1, dtype=torch.int64)
    mine = range(rank(), len(task.rows), world_size())
    for begin in range(0, len(mine), EXAMPLES_PER_WINDOW):
        indices = mine[begin : begin + EXAMPLES_PER_WINDOW]
        examples, num_cut = encode_examples(task, indices, tokenizer, scorer.sequence_len)
        counts[-1] += num_cut
        for index, scores in zip(indices, scorer.score(examples), strict=True):
            counts[index] = int(is_right(task, index, scores))
    *correct, num_cut = sum_over_ranks(counts.to(scorer.device)).tolist()
    return TaskResult(
        label=task.label,
        kind=task.kind,
        num_fewshot=task.num_fewshot,
        correct=correct,
        num_samples=1,
        num_cut=num_cut,
        seconds=time.perf_counter() - start_s,
    )


def summarize_core(
    tasks: Sequence[CoreTask], results: Sequence[TaskResult], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the report of `summarize`, with both versions of the baselines."""
    baselines = {version: {task.label: task.baselines()[version] for task in tasks} for version in BASELINES}
    return summarize("core", CORE_LABELS, results, baselines, {**about, "world_size": world_size()})


def bundle_digest(tasks: Sequence[CoreTask]) -> str:
    """Return a digest of the tasks; results of tasks with equal digests can be combined."""
    return digest([[task.label, task.kind, task.num_fewshot, task.delimiter, task.rows] for task in tasks])
