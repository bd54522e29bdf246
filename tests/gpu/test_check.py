"""check.py itself, without a GPU: limits, what survives a crash or a hang, the table, and that every part exists."""

import ast
import json
import sys
import threading
import time
from pathlib import Path

import check
import pytest


@pytest.fixture
def supervise(tmp_path):
    """Run a program under `check.supervise`; it finds the path of its findings in sys.argv[1]."""

    def run(program, limit_s=20.0):
        values = tmp_path / "values.json"
        return check.supervise([sys.executable, "-c", program, str(values)], limit_s, tmp_path / "log", values)

    return run


FINDING = "import json, sys; open(sys.argv[1], 'w').write(json.dumps({'values': {'a': 1}, 'failures': %r}))\n"


@pytest.mark.parametrize(
    ("program", "status", "failures"),
    [
        (FINDING % [], "passed", []),
        (FINDING % ["too slow"], "failed", ["too slow"]),
        (FINDING % [] + "raise SystemExit('no kernel')", "crashed", ["no kernel"]),
        (FINDING % [] + "import os; os.kill(os.getpid(), 11)", "crashed", ["exit status -11"]),
    ],
)
def test_what_a_part_found_survives_its_end(supervise, program, status, failures):
    result = supervise(program)
    assert (result["status"], result["values"], result["failures"]) == (status, {"a": 1}, failures)


def test_a_hanging_part_ends_with_its_children(supervise, tmp_path):
    child = "import subprocess, sys\np = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    child += f"open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid))\np.wait()"
    result = supervise(FINDING % [] + child, limit_s=2.0)
    assert (result["status"], result["values"]) == ("time limit", {"a": 1})
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        try:
            state = (tmp_path / f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.05)
    pytest.fail(f"process {pid} outlives the part that started it")


def test_time_that_is_left_over_goes_to_later_parts():
    parts = [check.Part("a", 10, ""), check.Part("b", 20, ""), check.Part("p", 30, "", of_peer=True)]
    assert check.time_limit(parts, 60.0, has_peer=True) == 10.0
    assert check.time_limit(parts, 60.0, has_peer=False) == 20.0
    assert check.time_limit(parts[1:], 58.0, has_peer=False) == 58.0


def test_the_run_goes_on_after_a_failure_and_writes_both_files(monkeypatch, tmp_path):
    results = {
        "environment": {"status": "crashed", "seconds": 1.0, "limit_s": 5.0, "values": {}, "failures": ["boom"]},
        "train_d12": {
            "status": "passed",
            "seconds": 2.0,
            "limit_s": 5.0,
            "values": {"tokens_per_s": 900.0},
            "failures": [],
        },
    }
    results["train_d12_peer"] = {**results["train_d12"], "values": {"tokens_per_s": 600.0}}
    monkeypatch.setattr(check, "run_part", lambda part, limit_s, options: {"part": part.name, **results[part.name]})
    options = check.parse(["--out", str(tmp_path), "--peer", str(tmp_path)])
    options.is_dry_run = True
    parts = [part for part in check.PARTS if part.name in results]
    assert [result["part"] for result in check.run_parts(parts, options)] == list(results)
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["parts"][1]["values"] == {"tokens_per_s": 900.0}
    text = (tmp_path / "table.md").read_text()
    assert "| environment | crashed | 1 | 5 |" in text
    assert "- environment: boom" in text
    assert "| d12 training, tokens/s | 900 | 600 | 1.50 | >= 1.0 |" in text
    assert "Dry run" in text
    options.peer = None
    assert check.run_parts(parts[2:], options)[0]["reason"] == "no --peer"


def test_parts_that_measure_no_speed_run_at_once(monkeypatch, tmp_path):
    meet = threading.Barrier(2, timeout=10)
    order = []

    def run_part(part, limit_s, options):
        if not part.is_timed:
            meet.wait()  # passes only if both run at the same time
        order.append((part.name, round(limit_s)))
        return {"part": part.name, "status": "passed", "seconds": 0.0}

    monkeypatch.setattr(check, "run_part", run_part)
    options = check.parse(["--out", str(tmp_path), "--minutes", "2", "--together"])
    options.is_dry_run = False
    parts = [part for part in check.PARTS if part.name in ("train_d12", "resume", "commands", "train_d12_peer")]
    results = check.run_parts(parts, options)
    assert sorted(order[:2]) == [("commands", 63), ("resume", 63)]  # 120 s * 60 / (60 + 55)
    assert order[2:] == [("train_d12", 120)]
    assert [result["status"] for result in results] == ["passed"] * 3 + ["not run"]


def test_without_a_gpu_it_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(check, "has_gpu", lambda: False)
    assert check.main(["--out", str(tmp_path)]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize("part", check.PARTS, ids=lambda part: part.name)
def test_every_part_exists(part):
    module, _, function = part.function.partition(":")
    tree = ast.parse((Path(check.__file__).parent / f"{module}.py").read_text("utf-8"))
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_compared_values_belong_to_parts():
    names = {part.name for part in check.PARTS}
    assert {row[index] for row in check.COMPARED for index in (1, 3)} <= names


def test_cells_hold_no_bars():
    assert check.text("a|b\nc") == "a/b<br>c"
    assert (check.text(0.51234), check.text(123456.7)) == ("0.5123", "123,457")
