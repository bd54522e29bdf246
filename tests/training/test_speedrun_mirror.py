"""The speedrun's recipe against a mirror of a few small shards: from the download to the export, with sizes overridden."""

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat_lit import cli, load_export
from nanochat_lit.training.run_records import read_metrics

NUMBERS = (0, 1, 2, 6542)


@pytest.fixture
def mirror(fault_server):
    """Four shards in ClimbMix's layout: names, one column `text`, zstd, row groups."""
    rng = random.Random(0)
    nouns = ["cat", "dog", "river", "house", "tree", "boat", "letter", "garden", "wheel", "stone"]
    for number in NUMBERS:
        texts = [
            " ".join(f"The {rng.choice(nouns)} {rng.randint(0, 99)} is near the {rng.choice(nouns)}." for _ in range(n))
            for n in [rng.randint(3, 60) for _ in range(200)]
        ]
        path = fault_server.folder / f"shard_{number:05d}.parquet"
        pq.write_table(pa.table({"text": texts}), path, row_group_size=64, compression="zstd")
    return fault_server


def sizes(core_bundle):
    model = {"depth": 2, "head_dim": 32, "aspect_ratio": 16, "sequence_len": 64, "tokens_per_step": 512}
    model |= {"num_steps": 6, "eval_every": 3, "warmup": 1}
    data = {
        "source.init_args.num_shards": 3,
        "vocab_size": 400,
        "micro_batch_size": 4,
        "val_docs": 20,
        "num_workers": 1,
    }
    trainer = {"accelerator": "cpu", "devices": 1, "strategy": "auto"}
    options = [*(f"--model.{key}={value}" for key, value in model.items())]
    options += [f"--data.{key}={value}" for key, value in data.items()]
    options += [f"--trainer.{key}={value}" for key, value in trainer.items()]
    callback = {
        "class_path": "nanochat_lit.training.CoreEvaluator",
        "init_args": {"bundle": str(core_bundle), "max_per_task": 5, "every": 3},
    }
    return [*options, "--compute_dtype=float32", "--log_every=1", f"--trainer.callbacks={json.dumps([callback])}"]


def test_the_speedrun_runs_from_download_to_export(mirror, core_bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["fit", "--config", "recipes/gpt2_speedrun.yaml", "--data.mirror", mirror.url, *sizes(core_bundle)]
    assert cli.main(arguments) == 0
    run = tmp_path / "runs" / "gpt2_speedrun"
    rows = read_metrics(run / "metrics.csv")
    assert max(rows) == 6
    assert rows[6]["val_bpb"] < rows[0]["val_bpb"]
    assert "core" in " ".join(rows[6])
    model, tokenizer = load_export(run / "export")
    assert tokenizer.vocab_size == model.config.vocab_size == 400
    pinned = json.loads((run / "validation.json").read_text("utf-8"))
    assert list(pinned) == ["shard_06542.parquet"]
    assert {seen.path for seen in mirror.seen} == {
        "/SHA256SUMS", *(f"/shard_{number:05d}.parquet" for number in NUMBERS)
    }  # fmt: skip

    # A changed validation shard is noticed when the run goes on, and named.
    capsys.readouterr()
    folder = next((tmp_path / "cache").rglob("shard_06542.parquet")).parent
    path = folder / "shard_06542.parquet"
    path.write_bytes((folder / "shard_00000.parquet").read_bytes())
    for leave in (folder / "manifest.json", path):
        assert cli.main([*arguments, "--ckpt_path", "last", "--model.num_steps=8"]) == 2
        assert "shard_06542.parquet" in capsys.readouterr().err
        leave.unlink()
