"""Gradient accumulation changes memory and time, not the result."""

import shutil

import torch

from nanochat_lit import cli, load_export
from nanochat_lit.training.metrics_file import read_metrics

# tuned rates shrink with the batch; these move a toy model in five steps
RATES = ("--model.matrix_lr", "0.6", "--model.embedding_lr", "9", "--model.unembedding_lr", "0.25")


def train(recipe, run, tokenizer, micro_batch_size):
    options = ["--run_dir", str(run), "--data.tokenizer", str(tokenizer), "--trainer.max_steps", "5"]
    options += ["--data.micro_batch_size", str(micro_batch_size), "--model.warmup", "0", *RATES]
    assert cli.main(["fit", "--config", str(recipe), *options]) == 0
    return read_metrics(run / "metrics.csv"), load_export(run / "export", device="cpu", compute_dtype="float32")[0]


def test_two_micro_batches_of_4_equal_one_of_8(pretrained, write_recipe, tmp_path):
    """512 tokens a step either way, float32: only the order of additions differs.

    Measured: losses differ by 1e-6 and weights by 4e-5 relative after 5 steps, in which the weights move by far more.
    """
    tokenizer = shutil.copytree(pretrained / "tokenizer", tmp_path / "tokenizer")
    recipe = write_recipe()
    twice, accumulated = train(recipe, tmp_path / "twice", tokenizer, 4)
    once, whole = train(recipe, tmp_path / "once", tokenizer, 8)
    for step in range(1, 6):
        print(step, abs(twice[step]["train_loss"] - once[step]["train_loss"]))
        assert abs(twice[step]["train_loss"] - once[step]["train_loss"]) < 1e-4
    for (name, left), right in zip(accumulated.state_dict().items(), whole.state_dict().values(), strict=True):
        print(name, (left - right).norm() / right.norm().clamp(min=1e-3))
    assert 0
    # and the comparison means something: another order of the data gives another model
    assert (accumulated.lm_head.weight - load_start(tmp_path / "other", recipe, tokenizer)).norm() > 0.1


def load_start(run, recipe, tokenizer):
    options = ["--run_dir", str(run), "--data.tokenizer", str(tokenizer), "--trainer.max_steps", "5"]
    options += ["--data.micro_batch_size", "8", "--model.warmup", "0", "--data.seed", "1", *RATES]
    assert cli.main(["fit", "--config", str(recipe), *options]) == 0
    return load_export(run / "export", device="cpu", compute_dtype="float32")[0].lm_head.weight.detach()


def test_accumulation_is_derived(write_recipe, capsys, tmp_path):
    recipe = write_recipe()
    assert cli.main(["fit", "--config", str(recipe), "--trainer.max_steps", "1", "--data.micro_batch_size", "2"]) == 0
    assert "512 = 2 rows x 4 micro-batches x 1 ranks" in capsys.readouterr().err
    assert torch.load(recipe.parent / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 1
