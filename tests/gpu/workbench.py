"""A folder with small data and recipes of every stage, and the commands run on them as processes."""

import json
import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from check import is_stand_in

REPOSITORY = Path(__file__).resolve().parents[2]
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
]


class Workbench:
    """Data and recipes of a small model.

    Args:
        folder: Where everything is written.
        depth: Layers of the model.
        num_steps: Steps of pretraining.
        sequence_len: Context; below 1024 the model has windows too, as its pattern is "SL".
    """

    def __init__(self, folder: Path, *, depth: int, num_steps: int = 60, sequence_len: int = 256) -> None:
        self.folder, self.depth, self.num_steps, self.sequence_len = folder, depth, num_steps, sequence_len
        folder.mkdir(parents=True, exist_ok=True)
        draw = random.Random(0)
        self._write_lines(
            "text.jsonl", [{"text": " ".join(draw.choices(WORDS, k=draw.randint(20, 160)))} for _ in range(600)]
        )
        self._write_lines("conversations.jsonl", [_conversation(draw.choice(WORDS)) for _ in range(200)])
        expected = {"category": "talk", "expect": {"min_words": 4}}
        for name in ("train", "val"):
            questions = [{"messages": [{"role": "user", "content": f"say {word}"}], **expected} for word in WORDS]
            self._write_lines(f"{name}.jsonl", questions)

    def run_dir(self, stage: str) -> Path:
        """Folder of a stage's run."""
        return self.folder / stage

    def pretrain(self, **model: Any) -> str:
        """Options of a pretraining run that validates and writes checkpoints."""
        settings = {
            "depth": self.depth, "sequence_len": self.sequence_len, "window_pattern": "SL", "num_steps": self.num_steps,
            "tokens_per_step": 8 * self.sequence_len, "eval_every": 20, "warmup": 2, **model,
        }  # fmt: skip
        data = {"path": str(self.folder / "text.jsonl"), "vocab_size": 320, "micro_batch_size": 4, "val_docs": 20}
        return self._recipe("pretrain", "PretrainModule", settings, "TextDataModule", data)

    def sft(self, optimizer_from: Path | None = None) -> str:
        """Options of fine-tuning the pretrained export."""
        settings = {"base": str(self.run_dir("pretrain") / "export"), "tokens_per_step": 8 * self.sequence_len}
        settings |= {"num_steps": 3, "eval_every": 0}
        settings |= {"optimizer_from": str(optimizer_from)} if optimizer_from else {}
        data = {"path": str(self.folder / "conversations.jsonl"), "micro_batch_size": 4}
        return self._recipe("sft", "SFTModule", settings, "ChatDataModule", data)

    def rl(self) -> str:
        """Options of reinforcement learning from the fine-tuned export."""
        settings = {
            "base": str(self.run_dir("sft") / "export"),
            "num_steps": 2,
            "eval_every": 2,
            "questions_per_step": 4,
        }
        settings |= {"num_samples": 4, "max_new_tokens": 12, "init_lr_fraction": 0.5}
        load = "nanochat_lit.tasks.tiny_world.TinyWorldTask.load"
        tasks = {
            name: {"class_path": load, "init_args": {"path": str(self.folder / f"{name}.jsonl")}}
            for name in ("train", "val")
        }
        data = {**tasks, "micro_batch_size": 4, "val_samples": 2}
        return self._recipe("rl", "RLModule", settings, "RolloutDataModule", data)

    def core_bundle(self) -> Path:
        """Folder of an evaluation bundle with one task of 24 questions."""
        folder = self.folder / "bundle"
        (folder / "eval_data").mkdir(parents=True, exist_ok=True)
        task = {"label": "copa", "dataset_uri": "copa.jsonl", "num_fewshot": [2], "icl_task_type": "multiple_choice"}
        (folder / "core.yaml").write_text(json.dumps({"icl_tasks": [task]}), "utf-8")
        (folder / "eval_meta_data.csv").write_text("Eval Task,Random baseline\ncopa,50\n", "utf-8")
        rows = [
            {
                "query": " ".join(WORDS[: 3 + number % 7]),
                "choices": ["a cat", f"the {WORDS[number % 9]}"],
                "gold": number % 2,
            }
            for number in range(24)
        ]
        self._write_lines("bundle/eval_data/copa.jsonl", rows)
        return folder

    def serve_one(self, export: str, request: dict[str, Any], limit_s: float = 300.0) -> dict[str, Any]:
        """Start a server on any free port, ask it once, and end it; its answer, or nothing if it does not start."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        process = self.start("serve", "--model", export, "--port", str(port), "--slots", "4")
        address = f"http://127.0.0.1:{port}"
        end_s = time.monotonic() + limit_s
        try:
            while process.poll() is None and time.monotonic() < end_s:
                try:
                    urllib.request.urlopen(f"{address}/health", timeout=2).close()
                except OSError:
                    time.sleep(0.2)
                    continue
                body = json.dumps({"model": "sft", **request}).encode()
                asked = urllib.request.Request(
                    f"{address}/v1/chat/completions", body, {"Content-Type": "application/json"}
                )
                with urllib.request.urlopen(asked, timeout=limit_s) as answer:
                    return json.load(answer)
            return {}
        except OSError as error:
            return {"error": str(error)}
        finally:
            process.terminate()
            process.wait()

    def start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        """Start a command, a recipe's path in place of `--config`; its output goes to a log of the command's name."""
        options = [option for argument in arguments for option in _as_options(argument)]
        program = [str(Path(__file__).with_name("exempt.py"))] if is_stand_in() else ["-m", "nanochat_lit"]
        with self._log_path(arguments[0]).open("wb") as log:
            return subprocess.Popen(
                [sys.executable, *program, *options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | {"PYTHONPATH": _python_path()},
            )  # fmt: skip

    def run(self, *arguments: str) -> int:
        """Run a command to its end; its exit status."""
        return self.start(*arguments).wait()

    def log(self, command: str, num_lines: int = 3) -> str:
        """The last lines that a command printed."""
        lines = self._log_path(command).read_text("utf-8", errors="replace").strip().splitlines()
        return " / ".join(lines[-num_lines:])

    def _log_path(self, command: str) -> Path:
        return self.folder / f"{command}.log"

    def _write_lines(self, name: str, rows: list[dict[str, Any]]) -> None:
        (self.folder / name).write_text("\n".join(map(json.dumps, rows)) + "\n", "utf-8")

    def _recipe(self, stage: str, module: str, settings: dict[str, Any], datamodule: str, data: dict[str, Any]) -> str:
        recipe = {
            "run_dir": str(self.run_dir(stage)), "log_every": 1, "checkpoint_every": 10,
            "model": {"class_path": f"nanochat_lit.training.{module}", "init_args": settings},
            "data": {"class_path": f"nanochat_lit.training.{datamodule}", "init_args": data},
            "trainer": {"accelerator": "gpu", "devices": 1},
        }  # fmt: skip
        path = self.folder / f"{stage}.yaml"
        path.write_text(json.dumps(recipe, indent=1), "utf-8")  # JSON is YAML
        return str(path)


def _conversation(word: str) -> dict[str, Any]:
    user = {"role": "user", "content": f"say {word}"}
    return {"messages": [user, {"role": "assistant", "content": f"{word} {word}."}]}


def _as_options(argument: str) -> list[str]:
    return ["--config", argument] if argument.endswith(".yaml") else [argument]


def _python_path() -> str:
    return os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
