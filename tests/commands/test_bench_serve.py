import json

import pytest

from nanochat_lit import cli
from nanochat_lit.commands.serve import model_name
from nanochat_lit.engine.export import save_export


@pytest.mark.slow
def test_every_request_is_answered_and_compared(tmp_path, random_model, tokenizer, capfd):
    save_export(tmp_path / "export", random_model(sequence_len=256), tokenizer)
    options = [
        "--concurrency",
        "[1, 3]",
        "--requests_per_client",
        "2",
        "--max_tokens",
        "6",
        "--slots",
        "2",
        "--device",
        "cpu",
    ]
    assert cli.main(["bench", "serve", "--model", str(tmp_path / "export"), *options, "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)["rows"]
    assert [(row["concurrency"], row["requests"], row["errors"]) for row in rows] == [(1, 2, 0), (3, 6, 0)]
    for row in rows:
        assert 0 < row["num_tokens"] <= 6 * row["requests"]
        assert row["overhead"] == pytest.approx(1 - row["tokens_per_s"] / row["engine_tokens_per_s"])
        assert row["first_token_ms"]["p50"] <= row["first_token_ms"]["p99"]


@pytest.mark.parametrize(
    ("folder", "name"), [("runs/quickstart/export", "quickstart"), ("runs/mine", "mine"), ("runs/mine/", "mine")]
)
def test_models_are_named_by_their_run(folder, name):
    assert model_name(folder) == name


def test_no_clients_are_refused(capsys):
    assert cli.main(["bench", "serve", "--model", "x", "--concurrency", "[0]"]) == 2
    assert "concurrency is [0]" in capsys.readouterr().err
