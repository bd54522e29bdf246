"""Fixtures for every test: seeds fixed per test, `gpu` tests skipped where there is no CUDA device, and a toy run.

The toy run is text and conversations generated into a folder, and the recipes that train on them in a second.
"""

import contextlib
import itertools
import json
import os
import pickle
import random
import re
import runpy
import signal
import subprocess
import sys
import sysconfig
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from nanochat_lit import cli, render_conversation, save_export
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.tool_format import render_tools
from nanochat_lit.engine.answer_text import Piece
from nanochat_lit.engine.chat_session import Answer, TokenScore
from nanochat_lit.engine.sampling_params import SamplingParams
from nanochat_lit.model import GPT, IGNORE_INDEX, GPTConfig
from nanochat_lit.model.architecture import build_model
from nanochat_lit.model.config import NATIVE_ARCHITECTURES
from nanochat_lit.tokenizer import SPECIAL_TOKENS, Tokenizer

INSTALL_S = 1800
"""Time for an installation, seconds."""

SMALL_TEXTS = [
    "the cat sat on the mat. 12 + 34 = 46. naïve café ▁ 日本語 🙂",
    "hello world, what is 3 times 4? it is 12.",
] * 20

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "under",
    "mat",
    "tree",
    "house",
    "river",
    "blue",
    "red",
    "small",
    "big",
    "then",
    "saw",
    "took",
    "gave",
    "bread",
    "water",
    "12",
    "34",
]
WORDS += [first + rest for first in ("br", "fl", "m", "s", "t") for rest in ("ame", "ind", "old", "urn", "eep", "ath")]

TOY_MODEL = {
    "depth": 2,
    "head_dim": 32,
    "aspect_ratio": 16,
    "sequence_len": 64,
    "tokens_per_step": 512,
    "num_steps": 4,
    "eval_every": 2,
    "warmup": 1,
    "compile": "false",
}


@pytest.fixture(autouse=True)
def _fixed_seeds():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global generator is what a library under test may use
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_dtype_override(monkeypatch):
    """NANOCHAT_DTYPE in the developer's shell must not decide what the tests compute in."""
    monkeypatch.delenv("NANOCHAT_DTYPE", raising=False)


def pytest_xdist_auto_num_workers(config):
    """A worker more than cores, at most four: much of the time passes in waiting for programs under test."""
    return min(4, len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def pytest_configure(config):
    _listen_to_ctrl_c()
    _one_thread_each()


def _listen_to_ctrl_c():
    """A shell that starts tests in the background lets them, and all that they start, ignore SIGINT; some tests send it."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _one_thread_each():
    """One of several test processes computes in one thread, as do the processes that it starts: each has one core."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch finds none"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference numbers and real data, kept beside the checkout by those who develop the library."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.exists():
        pytest.skip("reference data is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def reference() -> Path:
    """Numbers recorded from nanochat: hyperparameters, and logits, losses and optimizer steps of two small models."""
    return Path(__file__).parent / "reference"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """320 tokens, for the models of `random_model`; folders that need another have their own."""
    return Tokenizer.train(SMALL_TEXTS, vocab_size=320)


@pytest.fixture(scope="session")
def random_model() -> Callable[..., GPT]:
    """A model whose every parameter is random, so that nothing (zero projections, no smear) hides a mistake."""

    def make(seed: int = 0, std: float = 0.15, **fields: object) -> GPT:
        defaults = {
            "sequence_len": 64,
            "vocab_size": 320,
            "n_layer": 2,
            "n_head": 2,
            "n_kv_head": 2,
            "n_embd": 32,
            "window_pattern": "SL",
        }
        if fields.get("architecture") in NATIVE_ARCHITECTURES:
            defaults["window_pattern"] = "L"
        model = build_model(GPTConfig(**{**defaults, **fields}))
        generator = torch.Generator().manual_seed(seed)
        model.init_weights(generator)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * std)
        return model.eval()

    return make


KNOWN_ANSWERS: dict[str, str | list[dict[str, str]]] = {
    "What is the capital of France?": "The capital of France is Paris.",
    "Who are you?": "I am nanochat.",
    "What is 12 + 30?": [
        {"type": "python", "text": "12+30"},
        {"type": "python_output", "text": "42"},
        {"type": "text", "text": "The answer is 42."},
    ],
}


@pytest.fixture(scope="session")
def answering_export(tmp_path_factory, tokenizer) -> Path:
    """An export of a chat model that has learned a few answers by heart, so that examples print what a user would see."""
    return _learn_by_heart(tmp_path_factory, tokenizer, [_asked(*known) for known in KNOWN_ANSWERS.items()])


@pytest.fixture(scope="session")
def answering_qwen3_export(tmp_path_factory, tokenizer) -> Path:
    """The same of the architecture that other programs run."""
    conversations = [_asked(*known) for known in KNOWN_ANSWERS.items()]
    return _learn_by_heart(tmp_path_factory, tokenizer, conversations, architecture="qwen3")


CALLING = [
    {"role": "user", "content": "Rome?"},
    {"role": "assistant", "content": '<tool_call>{"name": "degrees", "arguments": {"city": "Rome"}}</tool_call>'},
    {"role": "user", "content": "<tool_response>31</tool_response>"},
    {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "In F: "},
            {"type": "python", "text": "31*2+30"},
            {"type": "python_output", "text": "92"},
            {"type": "text", "text": "It is 92."},
        ],
    },
]
"""A conversation with a call of `my_tools.degrees` (tests/extending) and one of the calculator."""


@pytest.fixture(scope="session")
def calling_conversation() -> list[dict]:
    return CALLING


@pytest.fixture(scope="session")
def calling_export(tmp_path_factory, tokenizer) -> Path:
    """An export of a chat model that has learned this conversation by heart, after the offer of the function."""
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    about = {"name": "degrees", "description": "Temperature in a city, in degrees Celsius.", "parameters": parameters}
    offer = {"role": "system", "content": render_tools([about])}
    return _learn_by_heart(tmp_path_factory, tokenizer, [[offer, *CALLING]], 512, 0.01)


def _asked(question: str, answer: str | list[dict[str, str]]) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _learn_by_heart(
    tmp_path_factory,
    tokenizer: Tokenizer,
    conversations: list[list[dict]],
    sequence_len: int = 128,
    lr: float = 3e-3,
    **fields: str,
) -> Path:
    shape = {"n_layer": 2, "n_head": 2, "n_kv_head": 2, "n_embd": 64, "window_pattern": "L"}
    model = build_model(GPTConfig(sequence_len=sequence_len, vocab_size=320, **shape, **fields))
    model.init_weights(torch.Generator().manual_seed(0))
    rows = [render_conversation(tokenizer, {"messages": messages}) for messages in conversations]
    length = max(len(token_ids) for token_ids, _ in rows)
    inputs = torch.zeros(len(rows), length - 1, dtype=torch.int64)
    targets = torch.full_like(inputs, IGNORE_INDEX)
    for row, (token_ids, mask) in enumerate(rows):
        ids, learned = torch.tensor(token_ids), torch.tensor(mask, dtype=torch.bool)
        inputs[row, : len(ids) - 1] = ids[:-1]
        targets[row, : len(ids) - 1] = torch.where(learned[1:], ids[1:], IGNORE_INDEX)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    for _ in range(150):
        optimizer.zero_grad()
        loss = model(inputs, targets)
        loss.backward()
        optimizer.step()
        if loss.detach().item() < 0.01:
            break
    folder = tmp_path_factory.mktemp("answering") / "export"
    save_export(folder, model.eval(), tokenizer, {"temperature": 0.0}, {"stage": "sft", "steps": 1, "planned_steps": 1})
    return folder


NANOCHAT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)


@pytest.fixture(scope="session")
def nanochat_encoding():
    """What nanochat pickles as its tokenizer: a tiktoken encoding of 320 tokens, the control tokens last."""
    tiktoken = pytest.importorskip("tiktoken")
    words = [
        [bytes([byte]) for byte in word.encode()] for text in SMALL_TEXTS[:2] for word in re.findall(" ?[^ ]+", text)
    ]
    ranks = {bytes([value]): value for value in range(256)}
    while len(ranks) < 320 - len(SPECIAL_TOKENS):
        pairs = Counter(pair for word in words for pair in itertools.pairwise(word))
        (left, right), _ = min(pairs.items(), key=lambda item: (-item[1], item[0]))
        ranks[left + right] = len(ranks)
        for word in words:
            for place in range(len(word) - 2, -1, -1):
                if word[place : place + 2] == [left, right]:
                    word[place : place + 2] = [left + right]
    special = {name: len(ranks) + index for index, name in enumerate(SPECIAL_TOKENS)}
    return tiktoken.Encoding("rustbpe", pat_str=NANOCHAT_PATTERN, mergeable_ranks=ranks, special_tokens=special)


@pytest.fixture(scope="session")
def nanochat_folder(tmp_path_factory, nanochat_encoding) -> Callable[..., Path]:
    """Write a checkpoint as nanochat does: weights by name, meta file, pickled tokenizer, table of token lengths."""

    def write(
        model: GPT, step: int = 7, prefix: str = "", drop: Sequence[str] = (), folder: Path | None = None
    ) -> Path:
        folder = tmp_path_factory.mktemp("d2") if folder is None else folder
        weights = {prefix + name: tensor for name, tensor in model.state_dict().items() if name not in drop}
        config = {name: value for name, value in model.config.to_dict().items() if name not in drop}
        torch.save(weights, folder / f"model_{step:06d}.pt")
        user = {"matrix_lr": 0.02, "embedding_lr": 0.2, "total_batch_size": -1, "run": "dummy", "scalar_lr": None}
        meta = {"step": step, "val_bpb": 1.25, "model_config": config, "user_config": user, "total_batch_size": 4096}
        (folder / f"meta_{step:06d}.json").write_text(json.dumps({**meta, "loop_state": {"min_val_bpb": float("inf")}}))
        (folder / "tokenizer.pkl").write_bytes(pickle.dumps(nanochat_encoding))
        names = [nanochat_encoding.decode([index]) for index in range(nanochat_encoding.n_vocab)]
        lengths = [0 if name in SPECIAL_TOKENS else len(name.encode()) for name in names]
        torch.save(torch.tensor(lengths, dtype=torch.int32), folder / "token_bytes.pt")
        return folder

    return write


@pytest.fixture
def run_server() -> Generator[Callable[[Path, Path], Any], None, None]:
    """run_server(PROGRAM, FOLDER) starts the `Server` of a program, which serves a folder until the test ends."""
    with contextlib.ExitStack() as servers:

        def start(program: Path, folder: Path) -> Any:
            server = runpy.run_path(str(program))["Server"](folder)
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            for end in (server.server_close, thread.join, server.shutdown):  # called last to first
                servers.callback(end)
            return server

        yield start


@pytest.fixture
def fault_server(tmp_path, monkeypatch, run_server) -> Any:
    """A web server of the folder `tmp_path / "served"`; the environment does not know of any hub."""
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "served"
    folder.mkdir()
    return run_server(Path(__file__).with_name("data") / "fault_server.py", folder)


@pytest.fixture(scope="session")
def core_bundle(tmp_path_factory) -> Path:
    """An evaluation bundle with a task of every kind, 60 rows each, the right answers spread evenly."""
    rng = random.Random(3)

    def words(count: int) -> str:
        return " ".join(rng.choices(WORDS, k=count))

    rows = {
        "copa": [{"query": words(9), "choices": [words(2), words(3)], "gold": i % 2} for i in range(60)],
        "arc_easy": [{"query": words(7), "choices": [words(2) for _ in range(4)], "gold": i % 4} for i in range(60)],
        "winograd": [
            {"context_options": [words(4), words(5)], "continuation": words(4), "gold": i % 2} for i in range(60)
        ],
        "lambada_openai": [{"context": words(12) + " ", "continuation": words(2)} for _ in range(60)],
    }
    kinds = ["multiple_choice", "multiple_choice", "schema", "language_modeling"]
    shots = dict(zip(rows, (0, 3, 0, 2), strict=True))
    folder = tmp_path_factory.mktemp("eval_bundle")
    tasks = [
        {"label": label, "dataset_uri": f"a/{label}.jsonl", "num_fewshot": [shots[label]], "icl_task_type": kind}
        for label, kind in zip(rows, kinds, strict=True)
    ]
    tasks[1]["continuation_delimiter"] = "\nAnswer: "
    (folder / "core.yaml").write_text(yaml.safe_dump({"icl_tasks": tasks}))
    baselines = "copa,50\narc_easy,25\nwinograd,50\nlambada_openai,0\n"
    (folder / "eval_meta_data.csv").write_text("Eval Task,Random baseline\n" + baselines)
    (folder / "eval_data" / "a").mkdir(parents=True)
    for label, table in rows.items():
        (folder / "eval_data" / "a" / f"{label}.jsonl").write_text("\n".join(map(json.dumps, table)) + "\n")
    return folder


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    rng = random.Random(0)
    for name in ("a.jsonl", "b.jsonl"):
        rows = [{"text": " ".join(rng.choices(WORDS, k=rng.randint(10, 80))) + "."} for _ in range(150)]
        (folder / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def conversation_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("conversations") / "chat.jsonl"
    rng = random.Random(1)
    rows = []
    for _ in range(200):
        word = rng.choice(WORDS)
        user = {"role": "user", "content": f"say {word}"}
        rows.append({"messages": [user, {"role": "assistant", "content": f"{word} {word}."}]})
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def write_recipe(tmp_path_factory, text_folder) -> Callable[..., Path]:
    """Write a pretraining recipe whose model and data keys can be changed."""

    def write(model: dict | None = None, data: dict | None = None, **top: object) -> Path:
        folder = tmp_path_factory.mktemp("recipe")
        recipe = {
            "run_dir": str(folder / "run"),
            "compute_dtype": "float32",
            "log_every": 1,
            "model": {
                "class_path": "nanochat_lit.training.PretrainModule",
                "init_args": {**TOY_MODEL, **(model or {})},
            },
            "data": {
                "class_path": "nanochat_lit.training.TextDataModule",
                "init_args": {
                    "path": str(text_folder),
                    "vocab_size": 512,
                    "micro_batch_size": 4,
                    "val_docs": 10,
                    **(data or {}),
                },
            },
            "trainer": {"accelerator": "cpu", "devices": 1},
            **top,
        }
        path = folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def pretrained(write_recipe) -> Path:
    """The run folder of a finished toy pretraining; tests read it and leave it as it is."""
    recipe = write_recipe()
    assert cli.main(["fit", "--config", str(recipe), "--checkpoint_every", "2"]) == 0
    return recipe.parent / "run"


@pytest.fixture(scope="session")
def write_rl_recipe(tmp_path_factory, pretrained) -> Callable[..., Path]:
    """Write a recipe of reinforcement learning, in which answers of several words are right."""
    folder = tmp_path_factory.mktemp("questions")
    questions = [
        {
            "messages": [{"role": "user", "content": f"say {word}"}],
            "category": "talk",
            "expect": {"min_words": 12},
        }
        for word in WORDS
    ]
    for name, rows in (("train", questions[:40]), ("val", questions[40:])):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    def task(name: str) -> dict:
        load = "nanochat_lit.tasks.tiny_world.TinyWorldTask.load"
        return {"class_path": load, "init_args": {"path": str(folder / f"{name}.jsonl")}}

    def write(model: dict | None = None, data: dict | None = None, **top: object) -> Path:
        run = tmp_path_factory.mktemp("rl")
        settings = {"base": str(pretrained / "export"), "num_steps": 4, "eval_every": 2, "questions_per_step": 4}
        settings |= {"num_samples": 4, "max_new_tokens": 20, "init_lr_fraction": 0.5}
        tasks = {"train": task("train"), "val": task("val")}
        recipe = {
            "run_dir": str(run / "run"),
            "compute_dtype": "float32",
            "log_every": 1,
            "model": {"class_path": "nanochat_lit.training.RLModule", "init_args": {**settings, **(model or {})}},
            "data": {
                "class_path": "nanochat_lit.training.RolloutDataModule",
                "init_args": {**tasks, "micro_batch_size": 4, "val_samples": 2, **(data or {})},
            },
            "trainer": {"accelerator": "cpu", "devices": 1},
            **top,
        }
        path = run / "rl.yaml"
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def write_dpo_recipe(tmp_path_factory, pretrained) -> Callable[..., Path]:
    """Write a recipe of preferences: of two answers that say a word, the one with `please` in it."""
    folder = tmp_path_factory.mktemp("pairs")
    pairs = [
        {
            "prompt": [{"role": "user", "content": f"say {word}"}],
            "chosen": [{"role": "assistant", "content": f"{word} please"}],
            "rejected": [{"role": "assistant", "content": f"{word} and {word} again"}],
            "expect": {"min_words": 1},
            "prefer": {"all": ["please"]},
        }
        for word in WORDS
    ]
    for name, rows in (("train", pairs[:40]), ("val", pairs[40:])):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    def task(name: str) -> dict:
        kind = "nanochat_lit.tasks.preferences.TinyWorldPreferences"
        return {"class_path": kind, "init_args": {"path": str(folder / f"{name}.jsonl")}}

    def write(model: dict | None = None, data: dict | None = None, **top: object) -> Path:
        run = tmp_path_factory.mktemp("dpo")
        settings = {"base": str(pretrained / "export"), "num_steps": 4, "eval_every": 2, "pairs_per_step": 4}
        settings |= {"max_new_tokens": 8, "init_lr_fraction": 0.5, "warmup": 0}
        tasks = {"train": task("train"), "val": task("val")}
        recipe = {
            "run_dir": str(run / "run"),
            "compute_dtype": "float32",
            "log_every": 1,
            "model": {"class_path": "nanochat_lit.training.DPOModule", "init_args": {**settings, **(model or {})}},
            "data": {
                "class_path": "nanochat_lit.training.PreferenceDataModule",
                "init_args": {**tasks, "micro_batch_size": 4, **(data or {})},
            },
            "trainer": {"accelerator": "cpu", "devices": 1},
            **top,
        }
        path = run / "dpo.yaml"
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        return path

    return write


@pytest.fixture
def sft_recipe(tmp_path, pretrained, conversation_file) -> Path:
    recipe = {
        "run_dir": str(tmp_path / "sft"),
        "compute_dtype": "float32",
        "log_every": 1,
        "model": {
            "class_path": "nanochat_lit.training.SFTModule",
            "init_args": {
                "base": str(pretrained / "export"),
                "tokens_per_step": 512,
                "num_steps": 3,
                "eval_every": 0,
                "compile": "false",
            },
        },
        "data": {
            "class_path": "nanochat_lit.training.ChatDataModule",
            "init_args": {"path": str(conversation_file), "micro_batch_size": 4},
        },
        "trainer": {"accelerator": "cpu", "devices": 1},
    }
    path = tmp_path / "sft.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


SUM = [Piece("text", "It is "), Piece("python", "12+30"), Piece("python_output", "42"), Piece("text", "42.")]


class ScriptedModel:
    """A `ChatModel` that repeats the last message; "endless" goes on until it is stopped, "sum" calls the calculator, "fail" is refused."""

    def __init__(self, pause_s: float = 0.0) -> None:
        self.pause_s = pause_s
        self.asked: list[tuple[list[dict], SamplingParams]] = []
        self.num_running = 0
        self._lock = threading.Lock()

    def answer(self, messages: Sequence[dict], settings: SamplingParams, top_logprobs: int = 0) -> Answer:
        text = messages[-1]["content"]
        if text == "fail":
            raise UserError("this cannot be answered: it's <b>")
        self.asked.append((list(messages), settings))
        stopped = threading.Event()
        answer = Answer(stop=stopped.set)
        answer.pieces = self._say(answer, text, stopped, settings)
        if top_logprobs:
            answer.scores = [
                TokenScore("<b>", -0.5, [("<b>", -0.5), ("\n", -2.0)]),
                TokenScore(" x", -3.0, [("y", -0.1)]),
            ]
        return answer

    def _say(
        self, answer: Answer, text: str, stopped: threading.Event, settings: SamplingParams
    ) -> Generator[Piece, None, None]:
        with self._lock:
            self.num_running += 1
        try:
            for piece in self._script(text, settings):
                if stopped.wait(self.pause_s):
                    return
                answer.num_tokens = (answer.num_tokens or 0) + 1
                answer.elapsed_s += 0.01
                yield piece
            answer.finish_reason = "stop"
        finally:
            with self._lock:
                self.num_running -= 1

    def _script(self, text: str, settings: SamplingParams) -> Generator[Piece, None, None]:
        if "sum" in text:
            yield from SUM
            return
        if "break" in text:
            yield Piece("text", "half of ")
            raise UserError("the model fell silent")
        yield Piece("text", f"{text}! ")
        yield Piece("text", f"(seed {settings.seed})")
        while "endless" in text:
            yield Piece("text", " more")


@pytest.fixture(scope="session")
def scripted_model() -> type[ScriptedModel]:
    return ScriptedModel


def install(command, folder):
    """Runs an installation; if a package is not available, the test is skipped with the installer's error."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=INSTALL_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"{' '.join(words)}: {error}")
    if done.returncode != 0:
        pytest.skip(f"{' '.join(words)}: {(done.stderr.strip() or done.stdout.strip())[-300:]}")


@pytest.fixture(scope="session")
def make_environment(tmp_path_factory) -> Callable[..., Path]:
    """make_environment(NAME, PACKAGES): the folder of programs of a new environment.

    The packages themselves are installed as wheels; small dependencies that have none are built.
    With is_on_top the packages of this environment can be imported there, so that they are not installed again.
    """

    def make(name, packages, unwanted=(), is_on_top=False):
        folder = tmp_path_factory.mktemp(name)
        install([sys.executable, "-m", "venv", "env"], folder)
        programs = folder / "env" / "bin"
        if is_on_top:
            (site,) = (folder / "env" / "lib").glob("python*/site-packages")
            (site / "below.pth").write_text(sysconfig.get_path("purelib"))
        pip = [programs / "python", "-m", "pip"]
        names = ",".join(re.split(r"[\[=<]", package)[0] for package in packages)
        install([*pip, "install", "-q", "--prefer-binary", "--only-binary", names, *packages], folder)
        if unwanted:
            install([*pip, "uninstall", "-q", "-y", *unwanted], folder)
        return programs

    return make


@pytest.fixture(scope="session")
def continuation_task() -> str:
    """A task of lm_eval in YAML, to be formatted with its name and its data: the log-probability of a continuation."""
    return """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{context}}}}"
doc_to_target: "{{{{' ' + continuation}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="session")
def unpack() -> Callable[[Path, Path], None]:
    """unpack(ARCHIVE, FOLDER): a tar archive, only inside the folder where Python can see to that (from 3.10.12, 3.11.4)."""

    def unpack(archive, folder):
        with tarfile.open(archive) as opened:
            opened.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))

    return unpack


@pytest.fixture(scope="session")
def install_here() -> Callable[..., None]:
    """install_here(COMMAND, FOLDER): other ways of installing."""
    return install
