"""Gradient accumulation changes memory and time, not the result."""

import torch

from nanochat_lit import cli, load_export
from nanochat_lit.training.run_records import read_metrics

# tuned rates shrink with the batch; these move a toy model in five steps
RATES = (
    "--model.matrix_lr",
    "0.6",
    "--model.embedding_lr",
    "9",
    "--model.unembedding_lr",
    "0.25",
    "--model.warmup",
    "0",
    "--model.weight_decay",
    "0",
)


def train(recipe, run, tokenizer, micro_batch_size, seed=0):
    """Losses by step, and every matrix of the result in one vector."""
    options = ["--run_dir", str(run), "--data.tokenizer", str(tokenizer), "--trainer.max_steps", "5", *RATES]
    options += ["--data.micro_batch_size", str(micro_batch_size), "--data.seed", str(seed)]
    assert cli.main(["fit", "--config", str(recipe), *options]) == 0
    model, _ = load_export(run / "export", device="cpu", compute_dtype="float32")
    matrices = torch.cat([weight.detach().flatten() for weight in model.parameters() if weight.ndim == 2])
    metrics = read_metrics(run / "metrics.csv")
    return torch.tensor([metrics[step]["train_loss"] for step in range(1, 6)]), matrices


def test_two_micro_batches_of_4_equal_one_of_8(pretrained, write_recipe, tmp_path):
    """512 tokens a step either way, float32: only the order of additions differs.

    Without weight decay, which is cautious: the sign of an entry near zero would decide about a whole step of it, and the
    matrices differ by up to 4e-3 of their norm at the same losses. Measured: losses differ by up to 1.3e-5, the matrices by
    3e-5 of their norm. Another order of the data gives matrices that differ by 0.85 of it.
    """
    recipe, tokenizer = write_recipe(), pretrained / "tokenizer"
    losses, matrices = train(recipe, tmp_path / "twice", tokenizer, 4)
    same_losses, same_matrices = train(recipe, tmp_path / "once", tokenizer, 8)
    other_losses, other_matrices = train(recipe, tmp_path / "other", tokenizer, 8, seed=1)
    torch.testing.assert_close(losses, same_losses, atol=1e-4, rtol=0)
    assert (losses - other_losses).abs().max() > 1e-2
    assert losses[-1] < losses[0] - 0.3
    distance = (matrices - same_matrices).norm()
    assert distance < 1e-3 * same_matrices.norm()
    assert (matrices - other_matrices).norm() > 0.1 * same_matrices.norm()


def test_accumulation_is_derived(write_recipe, capsys):
    recipe = write_recipe()
    assert cli.main(["fit", "--config", str(recipe), "--trainer.max_steps", "1", "--data.micro_batch_size", "2"]) == 0
    assert "512 = 2 sequences x 4 micro-batches x 1 ranks" in capsys.readouterr().err
    assert torch.load(recipe.parent / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 1
