"""EleutherAI's harness measures an exported folder, offline, and finds what our model says. (pip install 'lm_eval[hf]')"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nanochat_lit.engine.export import load_export, save_export
from nanochat_lit.engine.hf_export import export_hf

TASK = """
task: toy
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: " "
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def _ours(export: Path, rows: list[dict]) -> float:
    """Share of rows whose right choice is the likeliest continuation after bos, by our own model."""
    model, tokenizer = load_export(export, "cpu", "float32")
    correct = 0
    for row in rows:
        scores = []
        for choice in row["choices"]:
            prompt = tokenizer.encode(row["question"], prepend_bos=True)
            whole = tokenizer.encode(f"{row['question']} {choice}", prepend_bos=True)
            ids = torch.tensor([whole])
            logprobs = model(ids[:, :-1]).detach().log_softmax(dim=-1)[0]
            scores.append(sum(float(logprobs[place - 1, whole[place]]) for place in range(len(prompt), len(whole))))
        correct += scores.index(max(scores)) == row["answer"]
    return correct / len(rows)


@pytest.mark.slow
def test_a_local_task(tmp_path, random_model, tokenizer):
    pytest.importorskip("lm_eval", reason="large: pip install 'lm_eval[hf]' to run this")
    save_export(tmp_path / "export", random_model(sequence_len=256), tokenizer)
    export_hf(tmp_path / "export", tmp_path / "hf")
    rng = random.Random(0)
    words = ["the", "cat", "sat", "on", "the", "mat", "hello", "world", "what", "is", "three", "times", "four"]
    rows = [
        {
            "question": " ".join(rng.choices(words, k=8)),
            "choices": [" ".join(rng.choices(words, k=2)) for _ in range(3)],
            "answer": rng.randrange(3),
        }
        for _ in range(40)
    ]
    data = tmp_path / "toy.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "toy.yaml").write_text(TASK.format(data=data))
    command = [
        *(
            sys.executable,
            "-m",
            "lm_eval",
            "run",
            "--model",
            "hf",
            "--tasks",
            "toy",
            "--device",
            "cpu",
            "--batch_size",
            "8",
        ),
        *("--model_args", f"pretrained={tmp_path / 'hf'},trust_remote_code=True,dtype=float32,add_bos_token=True"),
        *("--include_path", str(tmp_path / "tasks"), "--output_path", str(tmp_path / "results")),
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        command, env={**os.environ, **offline}, cwd=tmp_path, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (result,) = (tmp_path / "results").rglob("results_*.json")
    assert json.loads(result.read_text())["results"]["toy"]["acc,none"] == pytest.approx(
        _ours(tmp_path / "export", rows)
    )
