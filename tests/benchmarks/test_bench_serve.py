import json

import bench as cli
import pytest

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
        "--newcomers",
        "3",
        "--device",
        "cpu",
    ]
    assert cli.main(["serve", "--model", str(tmp_path / "export"), *options, "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    rows, newcomer = report["rows"], report["newcomer"]
    assert [(row["concurrency"], row["requests"], row["errors"]) for row in rows] == [(1, 2, 0), (3, 6, 0)]
    for row in rows:
        assert 0 < row["num_tokens"] <= 6 * row["requests"]
        assert row["overhead"] == pytest.approx(1 - row["tokens_per_s"] / row["engine_tokens_per_s"])
        assert row["first_token_ms"]["p50"] <= row["first_token_ms"]["p99"]
        spent = row["cpu_us_per_token"]
        beside = spent["workers"] + spent["http"] - spent["engine"]
        assert row["cpu_overhead"] == (pytest.approx(beside / spent["engine"]) if spent["engine"] else None)
    assert (newcomer["busy_slots"], newcomer["requests"], newcomer["errors"]) == (1, 3, 0)
    busy, idle = newcomer["busy_first_token_ms"]["p50"], newcomer["idle_first_token_ms"]["p50"]
    assert newcomer["ratio"] == pytest.approx(busy / idle)


@pytest.mark.parametrize(
    ("folder", "name"), [("runs/quickstart/export", "quickstart"), ("runs/mine", "mine"), ("runs/mine/", "mine")]
)
def test_models_are_named_by_their_run(folder, name):
    assert model_name(folder) == name


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--concurrency", "[0]"], "concurrency is [0]"), (["--slots", "1"], "newcomers is 30 with 1 slots")],
)
def test_impossible_measurements_are_refused(options, message, capsys):
    assert cli.main(["serve", "--model", "x", *options]) == 2
    assert message in capsys.readouterr().err
