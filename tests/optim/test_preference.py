"""Losses of preferences against formulas of their own, and against TRL's values (version in the stored file)."""

import json
import math
import os
import subprocess
from pathlib import Path

import pytest
import torch

from nanochat_lit.optim.preference import preference_accuracy, preference_losses

LOG_RATIOS = torch.tensor([[0.0, 0.0], [2.0, -1.0], [-3.0, 5.0], [0.5, 0.25]])
NUM_TOKENS = torch.tensor([[3, 7], [1, 2], [9, 4], [5, 5]])


def by_hand(chosen, rejected, num_tokens, beta, loss):
    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    if loss == "ipo":
        return (chosen / num_tokens[0] - rejected / num_tokens[1] - 1 / (2 * beta)) ** 2
    if loss == "sigmoid":  # Bradley and Terry: the chosen one wins with this probability
        wins, loses = math.exp(beta * chosen), math.exp(beta * rejected)
        return -math.log(wins / (wins + loses))
    return (1 - sigmoid(beta * chosen)) + sigmoid(beta * rejected)


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "apo_zero"])
@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_losses_by_hand(loss, beta):
    """Within 1e-5, relative: float32 against float64."""
    found = preference_losses(LOG_RATIOS, NUM_TOKENS, beta, loss).tolist()
    pairs = zip(LOG_RATIOS.tolist(), NUM_TOKENS.tolist(), strict=True)
    assert found == pytest.approx([by_hand(*pair, counts, beta, loss) for pair, counts in pairs], rel=1e-5)


def test_the_gradient_of_dpo_is_that_of_its_paper():
    """beta * sigmoid(rejected reward - chosen reward) on both log-probabilities, with opposite signs; within 1e-6."""
    log_ratios = LOG_RATIOS.clone().requires_grad_(True)
    preference_losses(log_ratios, NUM_TOKENS, 0.3).sum().backward()
    weight = 0.3 * torch.sigmoid(0.3 * (LOG_RATIOS[:, 1] - LOG_RATIOS[:, 0]))
    torch.testing.assert_close(log_ratios.grad, torch.stack([-weight, weight], 1), atol=1e-6, rtol=0)


def test_large_ratios_stay_finite():
    extreme = torch.tensor([[-1e4, 1e4], [1e4, -1e4]])
    assert preference_losses(extreme, NUM_TOKENS[:2], 1.0).tolist() == [2e4, 0.0]


def test_ties_count_half():
    assert preference_accuracy(LOG_RATIOS).tolist() == [0.5, 1.0, 0.0, 1.0]


def assert_equal_to_ours(table):
    """Within 1e-5, relative: the log-ratios are differences of float32 sums of about 50 nats."""
    for row in table["rows"]:
        ratios, counts = torch.tensor([row["log_ratios"]]), torch.tensor([row["num_tokens"]])
        found = preference_losses(ratios, counts, row["beta"], row["loss"]).item()
        assert found == pytest.approx(row["value"], rel=1e-5), row


def test_values_of_trl(reference):
    table = json.loads((reference / "preference_losses_trl.json").read_text("utf-8"))
    assert {row["loss"] for row in table["rows"]} == {"sigmoid", "ipo", "apo_zero"}
    assert_equal_to_ours(table)


@pytest.mark.slow
def test_trl_itself(make_environment, tmp_path):
    """The newest TRL, installed next to this environment's torch and transformers; skipped where it cannot be."""
    python = make_environment("trl", ["trl"], is_on_top=True) / "python"
    program = Path(__file__).with_name("trl_program.py")
    done = subprocess.run(
        [python, program], cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert_equal_to_ours(json.loads(done.stdout.splitlines()[-1]))
