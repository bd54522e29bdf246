"""Tasks whose rows come from a hub on this machine, through `datasets`: the conversations of the same rows in files."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

QUESTIONS = [{"question": f"What is {n} + 1?", "answer": f"<<{n}+1={n + 1}>>{n + 1}\n#### {n + 1}"} for n in range(9)]
CHOICES = [f"choice {letter}" for letter in "abcd"]
EXAM = [{"question": f"Which is {n}?", "subject": "s", "choices": CHOICES, "answer": n % 4} for n in range(9)]
SCIENCE = [
    {"id": f"{n}", "question": f"Why {n}?", "choices": {"text": CHOICES, "label": list("ABCD")}, "answerKey": "ABCD"[n % 4]}
    for n in range(9)
]  # fmt: skip
PROGRAMS = [
    {"task_id": f"{n}", "prompt": f"def f{n}():\n", "canonical_solution": f"    return {n}\n", "test": "x", "entry_point": f"f{n}"}
    for n in range(9)
]  # fmt: skip
TALK = [
    {
        "messages": [{"role": "user", "content": f"hi {n}"}, {"role": "assistant", "content": f"hello {n}"}],
        "source": "s",
    }
    for n in range(9)
]
TASKS = {
    "gsm8k": ("openai/gsm8k", "main", "test", QUESTIONS, "nanochat_lit.tasks.gsm8k.GSM8K", {"split": "test"}),
    "mmlu": ("cais/mmlu", "all", "test", EXAM, "nanochat_lit.tasks.mmlu.MMLU", {"split": "test"}),
    "mmlu to learn": (
        "cais/mmlu", "auxiliary_train", "train", [{"train": row} for row in EXAM],
        "nanochat_lit.tasks.mmlu.MMLU", {"split": "auxiliary_train"},
    ),
    "arc": (
        "allenai/ai2_arc", "ARC-Challenge", "test", SCIENCE,
        "nanochat_lit.tasks.arc.ARC", {"subset": "ARC-Challenge", "split": "test"},
    ),
    "humaneval": (
        "openai/openai_humaneval", "default", "test", PROGRAMS, "nanochat_lit.tasks.humaneval.HumanEval", {},
    ),
    "smoltalk": (
        "HuggingFaceTB/smol-smoltalk", "default", "test", TALK,
        "nanochat_lit.tasks.smoltalk.SmolTalk", {"split": "test"},
    ),
}  # fmt: skip
PROGRAM = """
import importlib, json, sys
found = {}
for name, (where, options) in json.loads(sys.argv[1]).items():
    module, _, task = where.rpartition(".")
    found[name] = list(getattr(importlib.import_module(module), task)(**options))
print(json.dumps(found))
"""


def file_of(folder, name):
    hub, subset, split = TASKS[name][:3]
    return folder / hub / subset / f"{split}-00000-of-00001.parquet"


@pytest.fixture
def hub(tmp_path, run_server):
    """Every data set in parquet, with a card that says which file is which split, as the hub has them."""
    import pyarrow
    import pyarrow.parquet

    folder, cards = tmp_path / "served", {}
    for name, (repo, subset, split, rows, *_) in TASKS.items():
        file = file_of(folder, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        files = [{"split": split, "path": f"{subset}/{split}-*"}]
        cards.setdefault(repo, []).append({"config_name": subset, "data_files": files})
    for repo, configs in cards.items():
        (folder / repo / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n", encoding="utf-8")
    return run_server(Path(__file__).with_name("hub_server.py"), folder)


def read(tmp_path, hub, names, **environment):
    """What a process of its own reads, because the hub's address is looked at when its client is imported."""
    asked = json.dumps({name: TASKS[name][4:] for name in names})
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), **environment}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, asked], env={**kept, **own}, capture_output=True, text=True, check=False
    )


def test_the_hub_gives_what_the_files_give(hub, tmp_path):
    """Once over HTTP, with a server that is busy at first; then, without the server, from what is kept here."""
    hub.statuses += [503]
    over_http = read(tmp_path, hub, TASKS)
    assert over_http.returncode == 0, over_http.stderr
    found = json.loads(over_http.stdout)
    assert hub.statuses == []
    for name, (*_, where, options) in TASKS.items():
        module, _, task = where.rpartition(".")
        load = getattr(importlib.import_module(module), task)
        assert found[name] == list(load(**options, path=file_of(hub.folder, name))), name
    num_asked = len(hub.seen)
    kept = read(tmp_path, hub, TASKS, HF_HUB_OFFLINE="1")
    assert kept.returncode == 0, kept.stderr
    assert json.loads(kept.stdout) == found
    assert len(hub.seen) == num_asked


def test_a_hub_without_the_data_set_is_explained(hub, tmp_path):
    for path in (hub.folder / "openai" / "gsm8k").rglob("*.parquet"):
        path.unlink()
    refused = read(tmp_path, hub, ["gsm8k"])
    assert refused.returncode == 1
    assert "UserError: the data set openai/gsm8k (test) of the Hugging Face hub cannot be downloaded" in refused.stderr
    assert "give a local file: path" in refused.stderr
