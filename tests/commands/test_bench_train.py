"""The benchmark of training: its figures fit together, and it refuses what it cannot measure."""

import json

import pytest

from nanochat_lit.cli import main
from nanochat_lit.model.accounting import flops_per_token
from nanochat_lit.model.config import GPTConfig

SMALL = ["--depth=1", "--vocab_size=320", "--sequence_len=64", "--micro_batch_size=2", "--repeats=2", "--device=cpu"]


def test_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "train", *SMALL, "--tokens_per_step=256", "--compile=false", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    config = GPTConfig(**report["config"])
    assert (config.n_layer, config.sequence_len, report["micro_batch_tokens"]) == (1, 64, 128)
    assert report["tokens_per_s"] == pytest.approx(256 / report["step_s"])
    assert report["flops_per_s"] == pytest.approx(report["tokens_per_s"] * flops_per_token(config))
    assert report["share_of_limit"] == pytest.approx(report["flops_per_s"] / report["square_product_flops_per_s"])
    assert 0 < report["optimizer_share"] < 1


def test_a_table_for_people_with_a_profile(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "train", *SMALL, "--tokens_per_step=128", "--compile=false", "--profile"]) == 0
    out = capsys.readouterr().out
    assert "| tokens/s | " in out
    assert "MuonAdamW.step" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokens_per_step=200"], "not a multiple of the micro-batch (128 tokens); try 256"),
        (["--tokens_per_step=128", "--micro_batch_size=0"], "micro_batch_size 0"),
    ],
)
def test_bad_input(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "train", *SMALL, *options, "--compile=false"]) == 2
    assert message in capsys.readouterr().err
