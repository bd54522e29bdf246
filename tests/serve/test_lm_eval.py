"""EleutherAI's lm_eval scores answers of the server through /v1/completions, and finds the model's log-probabilities."""

import json
import os
import random
import subprocess

import pytest
import torch

from nanochat_lit.engine.export import load_export
from nanochat_lit.engine.hf_export import export_hf

pytestmark = [pytest.mark.slow]

PACKAGES = ["lm_eval[api]==0.4.13"]
WORDS = ["the", "cat", "sat", "on", "under", "mat", "tree", "naïve", "river", "12", "日本", "bread"]


@pytest.mark.parametrize("batch_size", [1, 8])
def test_log_likelihoods(make_environment, make_export, start_server, continuation_task, tmp_path, batch_size):
    export = make_export()
    export_hf(export, tmp_path / "hf")  # lm_eval tokenizes by itself
    rng = random.Random(0)
    rows = [
        {"context": " ".join(rng.choices(WORDS, k=6)), "continuation": " ".join(rng.choices(WORDS, k=2))}
        for _ in range(20)
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "here.yaml").write_text(continuation_task.format(name="here", data=data))
    server = start_server("--api_key", "secret", model=export)
    arguments = (
        f"model=tiny,base_url={server.url}/v1/completions,tokenizer_backend=huggingface,tokenizer={tmp_path / 'hf'}"
    )
    arguments += ",trust_remote_code=True,add_bos_token=True,max_length=512"
    python = make_environment("lm_eval", PACKAGES, is_on_top=True) / "python"
    command = [python, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", arguments]
    command += ["--tasks", "here", "--include_path", tmp_path, "--output_path", tmp_path / "out", "--log_samples"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OPENAI_API_KEY": "secret"}
    done = subprocess.run(
        [*map(str, command), "--batch_size", str(batch_size)],
        env={**os.environ, **offline},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    found = {
        sample["doc"]["context"]: [
            float(value == "True") if value in ("True", "False") else float(value) for value in sample["resps"][0][0]
        ]
        for sample in map(json.loads, samples.read_text().splitlines())
    }
    model, tokenizer = load_export(export, "cpu", "float32", cast_weights=True)
    for row in rows:
        context = tokenizer.encode(row["context"], prepend_bos=True)
        ids = tokenizer.encode(f"{row['context']} {row['continuation']}", prepend_bos=True)
        logprobs = model(torch.tensor([ids]))[0].log_softmax(dim=-1)[len(context) - 1 : -1]
        targets = torch.tensor(ids[len(context) :])
        total = logprobs.gather(1, targets[:, None]).sum().item()
        is_greedy = bool((logprobs.argmax(dim=-1) == targets).all())
        assert found[row["context"]] == pytest.approx([total, float(is_greedy)], abs=2e-3)
