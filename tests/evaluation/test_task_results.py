"""Results on disk: finished tasks are kept, other evaluations' are not taken for one's own."""

import json

import pytest

from nanochat_lit.common.downloads import file_sha256
from nanochat_lit.evaluation.core import evaluate_core, load_bundle
from nanochat_lit.evaluation.score_report import ResultsFile, TaskResult, digest
from nanochat_lit.evaluation.scoring import RowScore

KEY = {"model": "abc", "cap": 10}


def result(label="copa"):
    return TaskResult(label=label, kind="schema", num_fewshot=0, correct=[1, 0], num_samples=1, num_cut=0, seconds=1.5)


def test_results_are_read_back(tmp_path):
    first = ResultsFile(tmp_path / "progress.json", KEY)
    first.add(result("copa"))
    first.add(result("boolq"))
    again = ResultsFile(tmp_path / "progress.json", KEY)
    assert again.results == {"copa": result("copa"), "boolq": result("boolq")}
    assert not again.replaces_other
    again.remove()
    assert list(tmp_path.iterdir()) == []
    again.remove()


@pytest.mark.parametrize("content", ["{", "{}", '{"key": {}, "tasks": [{"label": "copa"}]}', "[]"])
def test_a_file_of_something_else_is_begun_anew(content, tmp_path):
    (tmp_path / "progress.json").write_text(content)
    file = ResultsFile(tmp_path / "progress.json", KEY)
    assert file.results == {}
    assert file.replaces_other
    file.add(result())
    assert ResultsFile(tmp_path / "progress.json", KEY).results == {"copa": result()}


def test_another_evaluation_is_begun_anew(tmp_path):
    ResultsFile(tmp_path / "progress.json", KEY).add(result())
    other = ResultsFile(tmp_path / "progress.json", {**KEY, "cap": 11})
    assert other.results == {}
    assert other.replaces_other


def test_without_a_path_nothing_is_written():
    file = ResultsFile(None, KEY)
    file.add(result())
    assert file.results == {"copa": result()}


def test_fingerprints(tmp_path):
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})
    for name, content in (("a", b"12"), ("b", b"12"), ("c", b"13")):
        (tmp_path / name).write_bytes(content)
    assert file_sha256(tmp_path / "a") == file_sha256(tmp_path / "b") != file_sha256(tmp_path / "c")


class Dies:
    """Scores two tasks, then dies as a killed process would."""

    sequence_len, device = 10_000, "cpu"

    def __init__(self, limit):
        self.limit, self.num_calls = limit, 0

    def score(self, examples):
        if self.num_calls == self.limit:
            raise KeyboardInterrupt
        self.num_calls += 1
        return [
            [RowScore(mean_loss=float(len(row) % 7), is_greedy=len(row) % 2 == 0) for row in e.rows] for e in examples
        ]


def test_a_killed_evaluation_goes_on_where_it_was(core_bundle, tokenizer, tmp_path):
    tasks = load_bundle(core_bundle)
    uninterrupted = evaluate_core(Dies(limit=99), tokenizer, tasks)
    path = tmp_path / "progress.json"
    with pytest.raises(KeyboardInterrupt):
        evaluate_core(Dies(limit=2), tokenizer, tasks, ResultsFile(path, KEY))
    assert len(json.loads(path.read_text())["tasks"]) == 2
    second, seen = Dies(limit=99), []
    results = evaluate_core(second, tokenizer, tasks, ResultsFile(path, KEY), on_task=seen.append)
    assert second.num_calls == 2
    assert seen == results
    assert [(r.label, r.correct) for r in results] == [(r.label, r.correct) for r in uninterrupted]
