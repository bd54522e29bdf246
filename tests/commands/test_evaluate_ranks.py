"""Every evaluation under torchrun, on two processes without any network but their own, gives what one process gives."""

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest

from nanochat_lit import cli
from nanochat_lit.engine.export import save_export


@pytest.fixture
def folder(tmp_path, random_model, tokenizer):
    save_export(tmp_path / "export", random_model(sequence_len=256), tokenizer)
    return tmp_path / "export"


@pytest.fixture
def commands(folder, core_bundle, text_folder, tmp_path):
    """Arguments of each evaluation, at toy size."""
    rows = [{"question": f"What is {number} + 1?", "answer": f"#### {number + 1}"} for number in range(7)]
    (tmp_path / "gsm8k.jsonl").write_text("\n".join(map(json.dumps, rows)))
    choices = [{"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": number % 4} for number in range(9)]
    (tmp_path / "mmlu.jsonl").write_text("\n".join(map(json.dumps, choices)))
    paths = {label: str(tmp_path / f"{label}.jsonl") for label in ("gsm8k", "mmlu")}
    exact = ("--compute_dtype", "float32", "--device", "cpu")
    chat = ("--tasks", '["gsm8k", "mmlu"]', "--paths", json.dumps(paths), "--max_new_tokens", 6)
    options = {
        "core": ("--bundle", core_bundle, "--max_per_task", 11, *exact),
        "chat": (*chat, *exact),
        "bpb": ("--data", text_folder, "--max_docs", 9, *exact),
        "samples": ("--max_new_tokens", 5),
        "tiny_world": ("--per_category", 1, "--max_new_tokens", 6),
    }
    return {
        command: ["evaluate", command, "--model", str(folder), *map(str, own), "--json"]
        for command, own in options.items()
    }


def without_times(value):
    if isinstance(value, dict):
        return {
            key: without_times(own)
            for key, own in value.items()
            if key not in ("seconds", "examples_per_s", "world_size")
        }
    return [without_times(own) for own in value] if isinstance(value, list) else value


COMMANDS = ["core", "chat", "bpb", "samples", "tiny_world"]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_evaluation_asks_the_network(command, commands, capsys, monkeypatch):
    def refuse(*arguments, **_):
        raise AssertionError(f"asked the network for {arguments}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert cli.main(commands[command]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.multi_rank
@pytest.mark.parametrize("command", COMMANDS)
def test_two_ranks_give_the_result_of_one(command, commands, folder, capsys):
    assert cli.main(commands[command]) == 0
    alone = json.loads(capsys.readouterr().out.splitlines()[-1])
    shutil.rmtree(folder.with_name("export_evaluation"), ignore_errors=True)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    together = subprocess.run(
        [*launcher, "-m", "nanochat_lit", *commands[command]],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert together.returncode == 0, together.stderr[-3000:]
    (line,) = together.stdout.splitlines()  # one rank prints
    result = json.loads(line)
    if command == "bpb":
        assert result.pop("bpb") == pytest.approx(alone.pop("bpb"), rel=1e-6)
    assert without_times(result) == without_times(alone)
