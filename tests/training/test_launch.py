"""Several ranks from the command line: how they are started, what they agree on, how they end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nanochat_lit import cli
from nanochat_lit.training.run_records import read_metrics

pytestmark = pytest.mark.multi_rank

FIT = ("-m", "nanochat_lit", "fit", "--config")


def environment(**more):
    """This process's variables, one thread per rank, none of an outer launcher."""
    launchers = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
    kept = {k: v for k, v in os.environ.items() if k not in launchers and not k.startswith(("SLURM_", "TORCHELASTIC"))}
    return kept | {"OMP_NUM_THREADS": "1"} | {name: str(value) for name, value in more.items()}


def start(recipe, *options, python=(), env=None):
    command = [sys.executable, *python, *FIT, str(recipe), *map(str, options)]
    return subprocess.Popen(
        command, env=env or environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )


def finished(process, timeout=240):
    _, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err[-3000:]
    return err


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def recipe_with_tokenizer(write_recipe, pretrained):
    def write(run, **data):
        return write_recipe(
            data={"tokenizer": str(pretrained / "tokenizer"), **data},
            run_dir=str(run),
            model={"tokens_per_step": 512, "num_steps": 4, "eval_every": 2},
        )

    return write


def test_two_ranks_by_devices(recipe_with_tokenizer, tmp_path):
    """One validation batch for two ranks: rank 1 has none, and the figure before training is that of one rank, exactly."""
    recipe = recipe_with_tokenizer(tmp_path / "two", micro_batch_size=2, val_docs=3)
    err = finished(start(recipe, "--trainer.devices", 2, "--trainer.strategy", "zero"))
    assert "512 = 2 sequences x 2 micro-batches x 2 ranks" in err
    assert err.count("step 4/4") == 1, "one rank reports"
    one = recipe_with_tokenizer(tmp_path / "one", micro_batch_size=2, val_docs=3)
    assert cli.main(["fit", "--config", str(one), "--trainer.max_steps", "1"]) == 0
    assert (
        read_metrics(tmp_path / "two/metrics.csv")[0]["val_bpb"]
        == read_metrics(tmp_path / "one/metrics.csv")[0]["val_bpb"]
    )
    checkpoint = torch.load(tmp_path / "two/checkpoints/last.ckpt", weights_only=True)
    momentum = checkpoint["optimizer_states"][0]["state"]
    stacks = [len(state["momentum_buffer"]) for state in momentum.values() if "momentum_buffer" in state]
    assert sum(stacks) == 13  # of both ranks: 6 matrices in each layer, and a gate


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero", "ddp"])
def test_launchers_agree(strategy, recipe_with_tokenizer, tmp_path):
    """--trainer.devices, torchrun and SLURM's variables give the same losses; so does resuming on one rank."""
    options = ("--trainer.devices", 2, "--trainer.strategy", strategy)
    rows = {}
    for way in ("devices", "torchrun", "slurm"):
        recipe = recipe_with_tokenizer(tmp_path / way)
        if way == "devices":
            finished(start(recipe, *options))
        elif way == "torchrun":
            torchrun = ("-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}")
            finished(start(recipe, *options, python=torchrun))
        else:
            variables = {"SLURM_NTASKS": 2, "SLURM_NTASKS_PER_NODE": 2, "SLURM_NNODES": 1, "SLURM_JOB_ID": 4711}
            variables |= {"SLURM_JOB_NAME": "toy", "SLURM_NODEID": 0, "SLURM_NODELIST": "127.0.0.1"}
            variables["MASTER_PORT"] = free_port()
            ranks = [
                start(recipe, *options, env=environment(**variables, SLURM_PROCID=rank, SLURM_LOCALID=rank))
                for rank in (1, 0)
            ]
            for process in ranks:
                finished(process)
        metrics = read_metrics(tmp_path / way / "metrics.csv")
        rows[way] = [metrics[step]["train_loss"] for step in range(1, 5)] + [metrics[4]["val_bpb"]]
    assert rows["devices"] == rows["torchrun"] == rows["slurm"]
    assert len(set(rows["devices"])) > 3


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("strategy", ["zero", "ddp"])
def test_a_killed_rank_ends_the_job(strategy, victim, recipe_with_tokenizer, tmp_path):
    """kill -9 of one of two ranks in training: within a minute both are gone, and the other has said why."""
    recipe = recipe_with_tokenizer(tmp_path / "run")
    options = (
        "--trainer.devices",
        2,
        "--trainer.strategy",
        strategy,
        "--trainer.max_steps",
        100000,
        "--model.eval_every",
        0,
    )
    process = start(recipe, *options)
    lines = []
    while "step 3/" not in "".join(lines[-1:]):
        lines.append(process.stderr.readline())
        assert lines[-1], "".join(lines)
    (child,) = children_of(process.pid)
    os.kill(child if victim else process.pid, signal.SIGKILL)
    killed_s = time.monotonic()
    with process.stderr:
        rest = process.stderr.read()  # ends when every rank has closed it
    assert process.wait(timeout=60) != 0
    while alive(child):
        assert time.monotonic() - killed_s < 60
        time.sleep(0.1)
    assert time.monotonic() - killed_s < 60
    assert f"error: rank {victim} died" in rest
    assert f"rank {1 - victim} exits too" in rest


def children_of(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text("utf-8").split()
    return [int(child) for child in children if b"nanochat_lit" in command_line(int(child))]


def command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def alive(pid):
    return bool(command_line(pid))


@pytest.mark.slow
def test_fewer_documents_than_ranks(write_recipe, pretrained, tmp_path):
    """Every rank ends before it trains, and one line says so."""
    path = tmp_path / "few.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"document {n} of three"}) for n in range(3)), encoding="utf-8")
    recipe = write_recipe(data={"path": str(path), "tokenizer": str(pretrained / "tokenizer"), "micro_batch_size": 2})
    options = ("--trainer.devices", 3, "--model.tokens_per_step", 384, "--trainer.strategy", "zero")
    process = start(recipe, *options)
    _, err = process.communicate(timeout=120)
    errors = [line for line in err.splitlines() if "too few" in line]
    assert process.returncode != 0
    assert len(errors) == 1, err
    assert "has 2 training item(s), too few for 3 rank(s)" in errors[0]
    assert "step 1/" not in err


MISTAKES = [
    ({}, ["--trainer.devices", "3", "--trainer.strategy", "zero"], "x 3 rank(s) = 768; use 768"),
    ({}, ["--trainer.devices", "3", "--model.tokens_per_step", "2000"], "use 1,536 or 2,304"),
    ({}, ["--trainer.devices", "3", "--model.tokens_per_step", "null"], "x 3 rank(s)"),
    ({}, ["--trainer.devices", "4", "--trainer.accelerator", "gpu"], "requests 4 GPU(s)"),
    ({}, ["--trainer.strategy", "zerro"], "zerro"),
    ({"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}, [], "--trainer.devices 2"),
    (
        {"SLURM_NTASKS": 4, "SLURM_NTASKS_PER_NODE": 2, "SLURM_PROCID": 0},
        [],
        "--trainer.devices 2 --trainer.num_nodes 2",
    ),
    ({"SLURM_NTASKS": 4, "SLURM_PROCID": 0}, [], "--ntasks-per-node"),
]


@pytest.mark.parametrize(("variables", "options", "words"), MISTAKES, ids=[str(mistake[1:]) for mistake in MISTAKES])
def test_mistakes_are_told_before_anything_starts(variables, options, words, write_recipe, monkeypatch, capfd):
    if "gpu" in options and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    recipe = write_recipe(data={"path": "no/such/folder"})  # not even looked at
    if "RANK" in variables:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "toy")
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    assert cli.main(["fit", "--config", str(recipe), *options]) == 2
    err = capfd.readouterr().err
    assert words in err
    assert len(err.splitlines()) <= 2, err
