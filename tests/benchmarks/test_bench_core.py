"""The benchmark of CORE: every way answers the same examples, in float32 alike."""

import json

import pytest
from bench import main

from nanochat_lit.engine.export import save_export


@pytest.fixture
def options(tmp_path, random_model, tokenizer, core_bundle):
    save_export(tmp_path / "export", random_model(sequence_len=256), tokenizer)
    return ["core", f"--model={tmp_path / 'export'}", f"--bundle={core_bundle}", "--repeats=1"]


def test_the_ways_agree(options, capsys):
    assert main([*options, "--max_per_task=12", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["examples"], report["tasks"]) == (48, 4)
    plain, exact, *fast = report["ways"]  # auto is float32 too on a processor without bfloat16
    assert (plain["ratio"], plain["differing_answers"], exact["differing_answers"]) == (1.0, 0, 0)
    assert all(way["way"].startswith("evaluate core ") for way in fast)
    assert exact["ratio"] == pytest.approx(exact["examples_per_s"] / plain["examples_per_s"])


def test_a_table_for_people(options, capsys):
    assert main([*options, "--max_per_task=5"]) == 0
    assert "| plain float32 | " in capsys.readouterr().out
    assert main([*options, "--repeats=0"]) == 2
    assert "repeats is 0" in capsys.readouterr().err
