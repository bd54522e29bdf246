"""The benchmark of inference: its figures fit together, and it refuses what it cannot measure."""

import json

import pytest

from nanochat_lit.cli import main

SMALL = ["--depth=1", "--vocab_size=320", "--sequence_len=128", "--prompt_len=8", "--new_tokens=4", "--repeats=1"]


@pytest.mark.parametrize("options", [[], ["--packed=false"], ["--compute_dtype=float32"]])
def test_figures(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "infer", *SMALL, "--streams=[1, 3]", "--device=cpu", *options, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["streams"] for row in report["decode"]] == [1, 3]
    for row in report["decode"]:
        assert row["tokens_per_s"] == pytest.approx(row["streams"] / row["step_ms"] * 1e3)
        assert row["mbu"] * row["bandwidth_gb_per_s"] * 1e6 * row["step_ms"] > report["weight_bytes"]  # and the keys
    assert report["prefill_tokens_per_s"] == pytest.approx(8 / report["first_token_ms"] * 1e3)
    assert report["packed"] == ("--packed=false" not in options)


def test_a_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "infer", *SMALL, "--streams=[2]"]) == 0
    assert "| streams | step ms | tokens/s | MBU | memory GB/s |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"), [(["--streams=[0]"], "streams [0]"), (["--new_tokens=999"], "context of 128")]
)
def test_impossible_measurements(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "infer", *SMALL, *options]) == 2
    assert message in capsys.readouterr().err
