"""The recipes of post-training, run on a toy base: sizes, files and devices overridden, every other key as it stands."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nanochat_lit import cli
from nanochat_lit.common.paths import read_json
from nanochat_lit.training.run_records import read_metrics

pytestmark = pytest.mark.slow  # some 40 s, most of it for the base

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = ["one", "two", "three", "four"]


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Rows in the hub's fields, short enough for a context of 192 tokens."""
    folder, rng = tmp_path_factory.mktemp("rows"), random.Random(0)

    def sums(count):
        pairs = [(rng.randint(1, 9), rng.randint(1, 9)) for _ in range(count)]
        return [{"question": f"{a} + {b}?", "answer": f"<<{a}+{b}={a + b}>>{a + b}\n#### {a + b}"} for a, b in pairs]

    exam = [{"question": f"{n}?", "choices": ["a", "b", "c", "d"], "answer": n % 4} for n in range(24)]
    science = [
        {"question": f"{n}?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "AB"[n % 2]}
        for n in range(24)
    ]
    talk = [
        {"messages": [{"role": "user", "content": f"say {w}"}, {"role": "assistant", "content": f"{w} {w}."}]}
        for w in NUMBERS * 10
    ]
    return {
        "gsm8k": write(folder / "gsm8k.jsonl", sums(24)),
        "mmlu": write(folder / "mmlu.jsonl", exam),
        "arc_easy": write(folder / "arc.jsonl", science),
        "talk": write(folder / "talk.jsonl", talk),
    }


@pytest.fixture(scope="module")
def base(write_recipe):
    """The run folder of a toy pretraining whose context has room for a multiple-choice question."""
    recipe = write_recipe({"sequence_len": 192, "tokens_per_step": 768})
    assert cli.main(["fit", "--config", str(recipe)]) == 0
    return recipe.parent / "run"


def fit(name, folder, num_ranks, **changes):
    """Run a recipe in an empty folder; the metrics by step and the run's folder."""
    changes = {"compute_dtype": "float32", "log_every": 1, "trainer.devices": num_ranks, **changes}
    changes["trainer.accelerator"] = "cpu"
    options = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changes.items()]
    command = [
        sys.executable,
        "-m",
        "nanochat_lit",
        "fit",
        "--config",
        str(ROOT / "recipes" / f"{name}.yaml"),
        *options,
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    run = folder / "runs" / name
    assert list(lost_keys(name, run, changes)) == []
    return read_metrics(run / "metrics.csv"), run


def lost_keys(name, run, changes):
    """What the recipe says, is not overridden, and is not in the config that the run kept of itself."""

    def lost(part, whole, path):
        for key, value in part.items():
            here = f"{path}{key}"
            if here.replace("init_args.", "") in changes:
                continue
            if isinstance(value, dict):
                yield from lost(value, whole.get(key) or {}, f"{here}.")
            elif str(whole.get(key)) != str(value):
                yield f"{here}: {value} became {whole.get(key)}"

    recipe = yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text("utf-8"))
    return lost(recipe, yaml.safe_load((run / "config.yaml").read_text("utf-8")), "")


FINE_TUNING = {"data.micro_batch_size": 2, "model.tokens_per_step": 768, "model.num_steps": 3, "model.compile": "false"}


@pytest.mark.multi_rank
def test_sft(files, base, tmp_path):
    """nanochat's mixture on two ranks, the optimizer's moments of the base, ChatCORE at the end."""
    labels = ["arc_easy", "mmlu", "gsm8k"]
    settings = {"tasks": labels, "paths": {label: files[label] for label in labels}}
    chat_core = {
        "class_path": "nanochat_lit.training.ChatCoreEvaluator",
        "init_args": {**settings, "max_per_task": 4, "max_new_tokens": 8},
    }
    paths = {"smoltalk": files["talk"], "mmlu": files["mmlu"], "gsm8k": files["gsm8k"]}
    changes = {f"data.{part}.{name}.path": path for part in ("train", "val") for name, path in paths.items()}
    changes |= {"model.base": str(base / "export"), "trainer.callbacks": [chat_core], "data.num_workers": 1}
    changes |= {"model.optimizer_from": str(base / "checkpoints" / "last.ckpt")}
    metrics, run = fit("sft", tmp_path, 2, **FINE_TUNING, **changes)
    assert max(metrics) == 3
    assert all(metrics[step]["train_loss"] > 0 for step in (1, 2, 3))
    assert metrics[3]["val_bpb"] < metrics[0]["val_bpb"]
    assert metrics[3].keys() >= {f"val_bpb/{name}" for name in paths}
    assert any("chat_core" in name for name in metrics[3])
    assert read_json(run / "export" / "provenance.json")["stage"] == "sft"


def test_cpu_sft(files, base, tmp_path):
    """Conversations, word problems and spelling."""
    changes = {"data.train.chat.path": files["talk"], "data.train.gsm8k.path": files["gsm8k"]}
    changes |= {"data.val.gsm8k.path": files["gsm8k"], "model.base": str(base / "export")}
    metrics, run = fit("cpu_sft", tmp_path, 1, **FINE_TUNING, **changes)
    assert max(metrics) == 3
    assert metrics[3]["val_bpb"] < metrics[0]["val_bpb"]
    assert metrics[3].keys() >= {"val_bpb/gsm8k", "val_bpb/spelling", "share/chat", "share/gsm8k", "share/spelling"}
    assert read_json(run / "export" / "provenance.json")["stage"] == "sft"


@pytest.mark.multi_rank
def test_gsm8k_rl(files, base, tmp_path):
    """Rollouts on two ranks, judged; pass@1 and pass@k of the held-out questions."""
    changes = {"data.train.path": files["gsm8k"], "data.val.path": files["gsm8k"], "model.base": str(base / "export")}
    changes |= {"model.num_steps": 3, "model.questions_per_step": 2, "model.num_samples": 4, "model.max_new_tokens": 12}
    changes |= {"data.val_questions": 4, "data.val_samples": 3, "data.micro_batch_size": 4}
    metrics, run = fit("gsm8k_rl", tmp_path, 2, **changes)
    assert max(metrics) == 3
    assert all(metrics[step].keys() >= {"reward", "entropy", "completion_len", "tool_use"} for step in (1, 2, 3))
    assert metrics[3].keys() >= {"val_accuracy", "val_pass@1", "val_pass@3"}
    assert read_json(run / "export" / "provenance.json")["stage"] == "rl"
    assert "(wrong)" in (run / "samples.md").read_text("utf-8")
