"""Reports: means, intervals, partial means, and the three files."""

import json

import numpy as np
import pytest

from nanochat_lit.evaluation.score_report import (
    TaskResult,
    aligned,
    headline,
    legend,
    markdown,
    summarize,
    table_rows,
    write_report,
)
from nanochat_lit.evaluation.statistics import pass_at_k


def result(label, correct, **changes):
    fields = {"kind": "schema", "num_fewshot": 3, "num_samples": 1, "num_cut": 2, "seconds": 4.0, **changes}
    return TaskResult(label=label, correct=correct, **fields)


RESULTS = [result("copa", [1, 0] * 40), result("boolq", [1, 1, 1, 0] * 20)]
BASELINES = {"v1": {"copa": 0.5, "boolq": 0.62}, "v2": {"copa": 0.5, "boolq": 0.5}}


def report(results=RESULTS, members=("copa", "boolq"), **changes):
    arguments = {"metric": "core", "baselines": BASELINES, "about": {"model": "m"}, **changes}
    return summarize(members=members, results=results, **arguments)


def test_the_mean_of_centered_accuracies():
    made = report()
    assert made["scores"]["v1"]["value"] == pytest.approx((0 + (0.75 - 0.62) / 0.38) / 2)
    assert made["scores"]["v2"]["value"] == pytest.approx((0 + 0.5) / 2)
    assert not made["is_partial"]
    assert made["examples"] == 160
    assert made["examples_per_s"] == 20
    copa = made["tasks"][0]
    assert (copa["accuracy"], copa["centered"]["v1"], copa["cut"], copa["seconds"]) == (0.5, 0, 2, 4.0)
    assert copa["low"] < 0.5 < copa["high"]


def test_the_interval_of_the_mean_is_that_of_independent_tasks():
    made = report()["scores"]["v1"]
    deviation = np.sqrt((0.25 / 80) / 0.5**2 + (0.1875 / 80) / 0.38**2) / 2
    assert made["high"] - made["low"] == pytest.approx(2 * 1.96 * deviation, rel=0.1)


def test_a_partial_mean_says_so():
    made = report(members=("copa", "boolq", "squad"))
    assert made["is_partial"]
    assert made["missing"] == ["squad"]
    first, second, warning, cut = headline(made)
    assert first.startswith("mean of 2 tasks, partial CORE (v1 baselines): ")
    assert "v2" in second
    assert warning == ("This mean is partial and not comparable with CORE: 1 of 3 tasks are missing (squad).")
    assert warning in markdown(made)
    assert cut == "4 of the 160 examples were truncated on the left to fit the context."
    whole = report([result("copa", [1, 0], num_cut=0)], ("copa",), baselines={"v1": {"copa": 0.5}})
    assert len(headline(whole)) == 1


def test_other_tasks_stand_in_the_table_and_not_in_the_mean():
    made = report(members=("boolq",))
    assert made["scores"]["v2"]["value"] == pytest.approx(0.5)
    assert [task["is_member"] for task in made["tasks"]] == [False, True]
    nothing = report(members=("squad",))
    assert nothing["scores"]["v1"]["value"] is None
    assert headline(nothing) == ["None of the 1 tasks of CORE was evaluated, so the mean is omitted."]
    assert "copa" in markdown(nothing)


def test_several_samples_give_pass_at_k():
    asked = result("gsm8k", [0, 1, 4, 2] * 10, num_samples=4, kind="generative")
    made = report([asked], ("gsm8k",), metric="chat_core", baselines={"chat_core": {"gsm8k": 0.0}}, k=2)
    (task,) = made["tasks"]
    assert task["accuracy"] == pytest.approx(7 / 16)
    assert task["pass_at_k"] == pytest.approx(pass_at_k([0, 1, 4, 2], 4, 2))
    assert task["low"] < 7 / 16 < task["high"]
    assert f"{task['pass_at_k']:.4f} (k 2)" in aligned(table_rows(made))
    assert [line.split(":")[0] for line in legend(made)] == ["cut", "pass@k"]


def test_a_page_explains_what_it_shows():
    """Equal answers have an interval without width, which is no certainty."""
    made = report(
        [result("gsm8k", [0] * 9, kind="generative", num_formed=6)],
        ("gsm8k",),
        metric="chat_core",
        baselines={"chat_core": {"gsm8k": 0.0}},
        about={"temperature": 0.0, "seed": 7},
    )
    page = markdown(made)
    assert "temperature: 0.0." in page
    assert "seed: 7." in page
    assert "- form: fraction of the answers" in page
    assert "2 of the 9 examples do not fit the context and count as wrong answers." in page
    assert "- An interval of zero width" in page
    assert "pass@k" not in page


@pytest.mark.parametrize("members", [("copa", "boolq"), ("squad",)])
def test_files(tmp_path, members):
    made = report(members=members)
    write_report(tmp_path / "out", made)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["core.json", "core.md", "core.png"]
    assert json.loads((tmp_path / "out/core.json").read_text()) == made
    page = (tmp_path / "out/core.md").read_text()
    assert page.startswith("# CORE\n")
    assert "| copa | schema | 3 | 80 | 0.5000 |" in page
    assert (tmp_path / "out/core.png").read_bytes().startswith(b"\x89PNG")
