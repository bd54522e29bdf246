"""bench.py llama: a random model of ours in 8 and 4 bits beside one of the same depth and width on llama.cpp.

The other is a Qwen3 (our architecture has no form there), so tokens/s are also given per byte of the matrices that a token
reads: their product, bytes/s, is what can be compared. Both sides run by turns, in processes of their own.
"""

import json as json_format
import os
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.gguf_export import GGUFType, write_gguf
from nanochat_lit.model import GPTConfig
from nanochat_lit.model.architecture import build_model
from nanochat_lit.model.config import QWEN3
from nanochat_lit.tokenizer import SPECIAL_TOKENS
from nanochat_lit.tokenizer.training import FIRST_BYTE_ID, NUM_BYTES

SCRIPT = Path(__file__).with_name("bench_llama.mjs")
TYPES: dict[str, GGUFType] = {"int8": "q8_0", "int4": "q4_0"}
"""What is compared: our form, llama.cpp's."""


class _Pieces:
    """A tokenizer's vocabulary without a tokenizer: what a file for llama.cpp has to name."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.special_ids = {name: index for index, name in enumerate(SPECIAL_TOKENS)}

    def pieces_and_scores(self) -> tuple[list[str], list[float]]:
        pieces = [f"w{index}" for index in range(self._size)]
        pieces[: len(SPECIAL_TOKENS)] = SPECIAL_TOKENS
        pieces[FIRST_BYTE_ID : FIRST_BYTE_ID + NUM_BYTES] = [f"<0x{byte:02X}>" for byte in range(NUM_BYTES)]
        pieces[-1] = "\u2581"
        return pieces, [-float(index) for index in range(self._size)]


def bench_llama(
    node_folder: str,
    depth: int = 12,
    vocab_size: int = 32768,
    prompt_len: int = 128,
    new_tokens: int = 128,
    repeats: int = 3,
    threads: int = 2,
    json: bool = False,
) -> None:
    """Measure prompts and decoding of one sequence beside llama.cpp.

    Args:
        node_folder: Folder in which `npm install --ignore-scripts node-llama-cpp@3.22.1` has run.
        depth: Number of layers of both models.
        vocab_size: Vocabulary size of both.
        prompt_len: Tokens of the prompt.
        new_tokens: Tokens to generate.
        repeats: Runs of each side, by turns; medians are reported.
        threads: Threads of both.
        json: Print only JSON.
    """
    if not (Path(node_folder) / "node_modules" / "node-llama-cpp").is_dir():
        raise UserError(f"{node_folder} has no node-llama-cpp; run `npm install --ignore-scripts node-llama-cpp` there")
    rows = []
    with TemporaryDirectory() as folder:
        for ours, theirs in TYPES.items():
            path = Path(folder) / f"{theirs}.gguf"
            num_bytes = _random_file(path, depth, vocab_size, prompt_len + new_tokens, theirs)
            job = {
                "model": str(path),
                "vocabulary": vocab_size,
                "prompt": prompt_len,
                "new": new_tokens,
                "threads": threads,
            }
            pairs = [
                (_ours(ours, depth, vocab_size, prompt_len, new_tokens, threads), _theirs(node_folder, job))
                for _ in range(repeats)
            ]
            rows.append(_row(f"ours, {ours}", [mine for mine, _ in pairs]))
            rows.append(_row(f"llama.cpp, {theirs}", [{**its, "bytes": num_bytes} for _, its in pairs]))
    if json:
        print(json_format.dumps(rows))
        return
    print(
        f"depth {depth}, vocabulary {vocab_size}, prompt of {prompt_len}, {new_tokens} new tokens, {threads} threads\n"
    )
    print("| model | matrices, MB | prompt, tokens/s | decode, tokens/s | prompt, GB/s | decode, GB/s |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        cells = (f"{row[name]:,.1f}" for name in ("mb", "prompt", "decode", "prompt_gb_per_s", "decode_gb_per_s"))
        print(f"| {row['model']} | {' | '.join(cells)} |")


def _random_file(path: Path, depth: int, vocab_size: int, context: int, kind: GGUFType) -> int:
    """Write a random Qwen3 and return the bytes of matrices that a token reads."""
    config = GPTConfig.from_depth(depth, vocab_size=vocab_size, sequence_len=max(context + 8, 512), architecture=QWEN3)
    model = build_model(config)
    generator = torch.Generator().manual_seed(0)
    model.init_weights(generator)
    for parameter in model.parameters():
        if parameter.ndim == 2 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    write_gguf(path, model, _Pieces(vocab_size), kind, "random", is_chat=False)  # type: ignore[arg-type]
    embeddings = model.config.vocab_size * model.config.n_embd * 34 / 32  # of which a token reads one row
    return int(path.stat().st_size - embeddings)


def _ours(quantize: str, depth: int, vocab_size: int, prompt_len: int, new_tokens: int, threads: int) -> dict[str, Any]:
    options = [f"--depth={depth}", f"--vocab_size={vocab_size}", f"--prompt_len={prompt_len}", f"--quantize={quantize}"]
    options += [f"--new_tokens={new_tokens}", "--sequence_len=512", "--streams=[1]", "--repeats=1", "--json"]
    command = [sys.executable, "-m", "nanochat_lit", "bench", "infer", "--device=cpu", *options]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    report = json_format.loads(done.stdout)
    (decode,) = report["decode"]
    return {
        "bytes": report["weight_bytes"],
        "prompt": report["prefill_tokens_per_s"],
        "decode": decode["tokens_per_s"],
    }


def _theirs(node_folder: str, job: dict[str, Any]) -> dict[str, Any]:
    script = Path(node_folder) / SCRIPT.name  # beside the package, where node looks for it
    script.write_text(SCRIPT.read_text("utf-8"), "utf-8")
    done = subprocess.run(
        ["node", str(script), json_format.dumps(job)], cwd=node_folder, check=True, capture_output=True, text=True
    )
    found: dict[str, Any] = json_format.loads(done.stdout.splitlines()[-1])
    return found


def _row(model: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    num_bytes = runs[0]["bytes"]
    prompt, decode = (statistics.median(run[name] for run in runs) for name in ("prompt", "decode"))
    return {
        "model": model,
        "mb": num_bytes / 1e6,
        "prompt": prompt,
        "decode": decode,
        "prompt_gb_per_s": prompt * num_bytes / 1e9,
        "decode_gb_per_s": decode * num_bytes / 1e9,
    }
