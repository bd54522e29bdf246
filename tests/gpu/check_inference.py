"""Evaluation and generation of a d12 with random weights, ours and nanochat's, by the same clock."""

import os
import random
import statistics
import sys
import time
import types
import zlib
from collections.abc import Sequence

import torch
from check_report import Report, compilations

from nanochat_lit.common.hardware import resolve_compute_dtype
from nanochat_lit.engine.engine import Engine
from nanochat_lit.engine.sampling_params import Request
from nanochat_lit.evaluation.bpb import evaluate_documents
from nanochat_lit.evaluation.core import CoreTask, evaluate_task
from nanochat_lit.evaluation.scoring import GPTScorer
from nanochat_lit.model import GPT, GPTConfig

NUM_LENGTHS = 40
"""Lengths of the questions that are made up."""
NUM_PROMPT_LENGTHS = 30
SLOWEST_PREFILL = 20
"""The slowest prompt may take this many times as long as the median: beyond, something was built for its length."""


class Words:
    """A tokenizer with one token per word, in the forms that both evaluations ask for."""

    bos_id = 0
    special_ids = dict.fromkeys(
        ("<|assistant_end|>", "<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>"), -1
    )

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        return [1 + zlib.crc32(word.encode()) % (self.vocab_size - 1) for word in text.split()]

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """Token ids of each text."""
        return [self.encode(text) for text in texts]

    def __call__(self, texts: Sequence[str], prepend: int) -> list[list[int]]:
        """Nanochat's form."""
        return [[prepend, *self.encode(text)] for text in texts]

    def get_bos_token_id(self) -> int:
        """Nanochat's form."""
        return self.bos_id

    def encode_special(self, _name: str) -> int:
        """Nothing ends an answer."""
        return -1

    def stream_decoder(self) -> "Words":
        """No text is made of the tokens."""
        return self

    def push(self, _token_id: int) -> str:
        """No text."""
        return ""

    def finish(self) -> str:
        """No text."""
        return ""


def config_of(report: Report) -> GPTConfig:
    """Depth 12; in a dry run 2."""
    if report.is_dry_run:
        return GPTConfig.from_depth(2, vocab_size=2048, sequence_len=512, head_dim=64)
    return GPTConfig.from_depth(12, vocab_size=32768, sequence_len=2048)


def random_model(config: GPTConfig, device: str, dtype: torch.dtype, std: float = 0.02) -> GPT:
    """A model whose every matrix is random, made on the CPU so that it is the same on every device."""
    model = GPT(config)
    generator = torch.Generator().manual_seed(0)
    model.init_weights(generator)
    for parameter in model.parameters():
        if parameter.ndim == 2 and not parameter.any():
            torch.nn.init.normal_(parameter, std=std, generator=generator)
    return model.to(device).set_compute_dtype(dtype, cast_weights=True).eval()


def made_up_task(report: Report) -> CoreTask:
    """Four-choice questions of 40 lengths with five solved examples before each."""
    draw = random.Random(0)

    def words(count: int) -> str:
        return " ".join(f"w{draw.randrange(5000)}" for _ in range(count))

    count, longest = (12, 40) if report.is_dry_run else (400, 200)
    lengths = [8 + (longest - 8) * (number % NUM_LENGTHS) // NUM_LENGTHS for number in range(count)]
    rows = [
        {"query": words(length), "choices": [words(2 + number % 3) for number in range(4)], "gold": length % 4}
        for length in lengths
    ]
    return CoreTask(
        label="made_up", kind="multiple_choice", num_fewshot=5, delimiter=" Answer: ", baseline=25.0, rows=rows
    )


def evaluation(report: Report) -> None:
    """Examples/s of CORE and of bits per byte on texts of many lengths, compilations after the first pass, peak memory."""
    config, dtype = config_of(report), resolve_compute_dtype("auto", "cuda")
    model, tokenizer, task = random_model(config, "cuda", dtype), Words(config.vocab_size), made_up_task(report)
    start_s = time.perf_counter()
    evaluate_task(GPTScorer(model), tokenizer, task)
    report.value("first pass, s", time.perf_counter() - start_s)
    before = compilations()
    torch.cuda.reset_peak_memory_stats()
    start_s = time.perf_counter()
    evaluate_task(GPTScorer(model), tokenizer, task)
    report.value("examples_per_s", len(task.rows) / (time.perf_counter() - start_s))
    texts = [" ".join(row["query"] for row in task.rows[: 1 + number % NUM_LENGTHS]) for number in range(NUM_LENGTHS)]
    evaluate_documents(model, tokenizer, texts, config.sequence_len)
    after_bpb = compilations()
    start_s = time.perf_counter()
    evaluate_documents(model, tokenizer, texts[::-1], config.sequence_len)
    report.value("documents_per_s", len(texts) / (time.perf_counter() - start_s))
    again = compilations() - after_bpb
    report.value("graphs compiled in the first pass", before)
    report.value("graphs compiled in the second passes", again)
    report.value("peak_gib", torch.cuda.max_memory_allocated() / 2**30)
    report.must(again == 0, f"{again} graphs were compiled in second passes over the same lengths")


def evaluation_peer(report: Report) -> None:
    """The same questions by nanochat's CORE evaluation, which takes one at a time."""
    model, config = their_model(report)
    from nanochat.core_eval import evaluate_task as their_evaluate_task

    task = made_up_task(report)
    rows = task.rows[: max(8, len(task.rows) // 4)]
    meta = {"task_type": task.kind, "num_fewshot": task.num_fewshot, "continuation_delimiter": task.delimiter}
    for number in range(2):
        start_s = time.perf_counter()
        with torch.no_grad():
            their_evaluate_task(model, Words(config.vocab_size), rows[: 8 if number == 0 else None], "cuda", meta)
    report.value("examples_per_s", len(rows) / (time.perf_counter() - start_s))


def generation(report: Report) -> None:
    """Tokens/s of 1, 8 and 32 sequences, prompts of 30 lengths, and greedy tokens against the CPU in float32."""
    config, dtype = config_of(report), resolve_compute_dtype("auto", "cuda")
    model, tokenizer = random_model(config, "cuda", dtype), Words(config.vocab_size)
    num_tokens = 8 if report.is_dry_run else 128
    for count in (1, 8, 32):
        torch.cuda.reset_peak_memory_stats()
        step_s = decode_step_s(Engine(model, tokenizer, num_slots=count), count, num_tokens)
        report.value(f"step_ms_{count}", 1e3 * step_s)
        report.value(f"tokens_per_s_{count}", count / step_s)
        report.value(f"peak_gib_{count}", torch.cuda.max_memory_allocated() / 2**30)
    prompts_of_many_lengths(report, Engine(model, tokenizer, num_slots=8))
    greedy_tokens(report)


def decode_step_s(engine: Engine, count: int, num_tokens: int) -> float:
    """Median seconds of a step that extends `count` sequences."""
    for number in range(count):
        prompt = [1 + (7 * number + place) % 1000 for place in range(64)]
        engine.admit(Request(prompt_ids=prompt, max_new_tokens=num_tokens + count + 40))
    while engine._prefills:
        engine.step()
    for _ in range(16):
        engine.step()
    seconds = []
    for _ in range(num_tokens):
        start_s = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - start_s)
    return statistics.median(seconds)


def prompts_of_many_lengths(report: Report, engine: Engine) -> None:
    """Time to the first token: no length may have something planned or compiled for it."""
    longest = engine.model.config.sequence_len - 8
    lengths = [16 + (longest - 16) * number // NUM_PROMPT_LENGTHS + number % 7 for number in range(NUM_PROMPT_LENGTHS)]
    for repeat in range(2):
        seconds, before = [], compilations()
        for length in lengths:
            start_s = time.perf_counter()
            slot = engine.admit(
                Request(prompt_ids=[1 + place % 1000 for place in range(length - repeat)], max_new_tokens=4)
            )
            while not any(token.slot == slot and token.finish_reason for token in engine.step()):
                pass
            seconds.append(time.perf_counter() - start_s)
        report.value(f"prompts of 30 lengths, pass {repeat + 1}: median ms", 1e3 * statistics.median(seconds))
        report.value(f"prompts of 30 lengths, pass {repeat + 1}: slowest ms", 1e3 * max(seconds))
    report.must(compilations() == before, "graphs were compiled for prompts of new lengths")
    slowest = max(seconds) / statistics.median(seconds)
    report.number_must(slowest < SLOWEST_PREFILL, f"the slowest prompt takes {slowest:.0f} times the median")


def greedy_tokens(report: Report) -> None:
    """The same greedy tokens as the CPU in float32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    config = GPTConfig.from_depth(2, vocab_size=512, sequence_len=256, head_dim=64)
    answers = {}
    for device in ("cpu", "cuda"):
        model = random_model(config, device, torch.float32, std=0.2)
        engine = Engine(model, Words(config.vocab_size), num_slots=4)
        for number in range(4):
            engine.admit(
                Request(prompt_ids=[1 + (number + place) % 500 for place in range(20 + number)], max_new_tokens=32)
            )
        tokens: dict[int, list[int]] = {}
        while engine.num_free < 4:
            for token in engine.step():
                tokens.setdefault(token.slot, []).append(token.token_id)
        answers[device] = tokens
    same = [
        mine == theirs
        for slot in range(4)
        for mine, theirs in zip(answers["cpu"][slot], answers["cuda"][slot], strict=True)
    ]
    report.value("greedy tokens equal to the CPU's", f"{sum(same)} of {len(same)}")
    report.number_must(
        all(same), f"{len(same) - sum(same)} of {len(same)} greedy tokens differ from the CPU's in float32"
    )


def their_model(report: Report) -> tuple[torch.nn.Module, GPTConfig]:
    """Nanochat's d12; its tokenizer's libraries are not needed for a measurement, so empty modules stand for them."""
    os.environ["NANOCHAT_DTYPE"] = str(resolve_compute_dtype("auto", "cuda")).removeprefix("torch.")
    sys.path.insert(0, str(report.peer))
    for name in ("rustbpe", "tiktoken"):
        sys.modules.setdefault(name, types.ModuleType(name))
    config = config_of(report)
    from nanochat import gpt as theirs

    fields = {
        name: getattr(config, name)
        for name in ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
    }
    model = theirs.GPT(theirs.GPTConfig(**fields)).to("cuda")
    model.init_weights()
    return model.eval(), config


def generation_peer(report: Report) -> None:
    """Tokens/s of nanochat's engine, 1, 8 and 32 samples of one prompt."""
    model, config = their_model(report)
    from nanochat.engine import Engine

    engine = Engine(model, Words(config.vocab_size))
    num_tokens = 8 if report.is_dry_run else 64
    for count in (1, 8, 32):
        seconds, last_s = [], 0.0
        steps = engine.generate([1 + place for place in range(64)], count, max_tokens=num_tokens + 8, temperature=0.0)
        for _ in steps:  # each step brings its tokens to the CPU, so the clock has waited for it
            now_s = time.perf_counter()
            seconds.append(now_s - last_s)
            last_s = now_s
        step_s = statistics.median(seconds[8:]) if len(seconds) > 8 else seconds[-1]
        report.value(f"step_ms_{count}", 1e3 * step_s)
        report.value(f"tokens_per_s_{count}", count / step_s)
