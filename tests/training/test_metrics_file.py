"""metrics.csv: columns appear as metrics do, a resume keeps what came before it, a rerun starts anew."""

import csv

from nanochat_lit.training.run_records import MetricsFile, read_metrics


def test_rows_and_columns(tmp_path):
    log = MetricsFile(tmp_path)
    log.log_metrics({"val_bpb": 3.0}, 0)
    log.log_metrics({"loss": 2.0, "epoch": 0}, 1)
    log.log_metrics({"loss": 1.5}, 2)
    log.log_metrics({"val_bpb": 2.5}, 2)
    assert read_metrics(log.path) == {0: {"val_bpb": 3.0}, 1: {"loss": 2.0}, 2: {"loss": 1.5, "val_bpb": 2.5}}
    with log.path.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["step", "val_bpb", "loss"], ["0", "3.0", ""], ["1", "", "2.0"], ["2", "2.5", "1.5"],
        ]  # fmt: skip


def test_every_row_is_on_disk_at_once(tmp_path):
    log = MetricsFile(tmp_path)
    for step in range(1, 5):
        log.log_metrics({"loss": 1.0 / step}, step)
        assert max(read_metrics(log.path)) == step


def test_a_resume_replaces_what_was_done_twice(tmp_path):
    first = MetricsFile(tmp_path)
    for step in range(1, 7):
        first.log_metrics({"loss": float(step)}, step)
    resumed = MetricsFile(tmp_path)
    resumed.start(3)  # the step of the checkpoint, so steps 4 to 6 are done again
    resumed.log_metrics({"loss": 40.0, "speed": 1.0}, 4)
    resumed.log_metrics({"loss": 50.0, "speed": 1.0}, 5)
    losses = {step: row["loss"] for step, row in read_metrics(first.path).items()}
    assert losses == {1: 1.0, 2: 2.0, 3: 3.0, 4: 40.0, 5: 50.0}


def test_a_new_run_in_an_old_folder_starts_anew(tmp_path):
    MetricsFile(tmp_path).log_metrics({"loss": 9.0}, 5)
    MetricsFile(tmp_path).log_metrics({"loss": 1.0}, 0)
    assert read_metrics(tmp_path / "metrics.csv") == {0: {"loss": 1.0}}


def test_nothing_is_written_by_other_ranks(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    MetricsFile(tmp_path).log_metrics({"loss": 1.0}, 1)
    assert list(tmp_path.iterdir()) == []


def test_no_file_no_rows(tmp_path):
    assert read_metrics(tmp_path / "metrics.csv") == {}
