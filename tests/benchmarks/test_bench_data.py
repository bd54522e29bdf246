"""The benchmark of data at toy size: its figures fit together, its scan gives the same rows, it refuses what it cannot measure."""

import json
import random
import time

import numpy as np
import pytest
from bench import main
from bench_data import scanned_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_lit import cli
from nanochat_lit.data.packing import BestFitRows

SMALL = ["--vocab_size=320", "--sequence_len=32", "--micro_batch_size=2", "--buffer_size=20", "--num_workers=1"]
SMALL += ["--seconds=0.1", "--repeats=1", "--train_chars=20000"]


def test_prepare_and_measure(text_folder, tmp_path, capsys):
    tokenizer, prepared = tmp_path / "tokenizer", tmp_path / "prepared"
    assert (
        cli.main(["tokenizer", "train", "--path", str(text_folder), "--out", str(tokenizer), "--vocab_size=320"]) == 0
    )
    options = ["--data", str(text_folder), "--tokenizer", str(tokenizer), "--out", str(prepared)]
    assert cli.main(["data", "prepare", *options]) == 0
    assert "tokens in 2 shards" in capsys.readouterr().out
    command = ["data", "--data", str(text_folder), "--prepared", str(prepared), *SMALL]
    assert main([*command, "--demands=[100000, 200000]", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    crop, split = report["packing"]
    assert crop["tokens_per_s"] > 0 < crop["scan_tokens_per_s"]
    assert (split["tokens_per_s"] > 0, split["scan_tokens_per_s"]) == (True, None)
    assert split["lost"] < 0.1 < crop["lost"]
    assert [(row["data"], row["num_workers"]) for row in report["loader"]] == [
        ("text", None), ("text", 0), ("text", 1), ("prepared", 0), ("prepared", 1),
    ]  # fmt: skip
    for row in report["loader"][1:]:
        assert set(row["waits"]) == {"100000", "200000"}
        assert all(0 < wait < 1 for wait in row["waits"].values())
    assert report["tokenizer"]["bytes_per_token"] > 1
    assert main([*command, "--demands=[100000]"]) == 0
    assert "| packing | tokens/s | by a scan | times | lost |" in capsys.readouterr().out


@pytest.mark.slow
def test_a_thousand_documents_are_packed_ten_times_as_fast_as_by_a_scan():
    """Real lengths: a few hundred to a few thousand tokens. Measured 25 to 42 times."""
    rng = random.Random(0)
    lengths = [min(20_000, int(rng.lognormvariate(7, 1))) + 1 for _ in range(6000)]
    documents = [np.zeros(length, np.uint16) for length in lengths]
    lists = [document.tolist() for document in documents]
    start_s = time.process_time()
    num_rows = sum(1 for _ in BestFitRows(documents, 513))
    packed_s = time.process_time()
    assert sum(1 for _ in scanned_rows(lists, 513, 1000)) == num_rows
    assert time.process_time() - packed_s > 10 * (packed_s - start_s)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 30), max_size=60), st.integers(2, 20), st.integers(1, 12))
def test_the_scan_gives_the_same_rows(lengths, row_len, buffer_size):
    documents = [np.arange(length) + 100 * index for index, length in enumerate(lengths)]
    rows = [row.tolist() for row in BestFitRows(documents, row_len, buffer_size)]
    assert list(scanned_rows([document.tolist() for document in documents], row_len, buffer_size)) == rows


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--repeats=0"], "must be above 0"), (["--prepared=nowhere"], "no folder that `data prepare`")],
)
def test_impossible_measurements(text_folder, options, message, capsys):
    assert main(["data", "--data", str(text_folder), *SMALL, *options]) == 2
    assert message in capsys.readouterr().err
