import json
import os
import subprocess
import sys

import pytest

from nanochat_lit import cli
from nanochat_lit.engine import sandbox
from nanochat_lit.engine.export import save_export
from nanochat_lit.engine.sandbox import missing_isolation
from nanochat_lit.evaluation import core
from nanochat_lit.evaluation.chat_core import code_runner
from nanochat_lit.evaluation.core import load_bundle
from nanochat_lit.evaluation.scoring import GPTScorer
from nanochat_lit.tasks.humaneval import program


@pytest.fixture
def folder(tmp_path, random_model, tokenizer):
    save_export(tmp_path / "export", random_model(sequence_len=256), tokenizer)
    return tmp_path / "export"


def run(capsys, *arguments):
    assert cli.main(["evaluate", *map(str, arguments)]) == 0
    return capsys.readouterr()


def core_options(folder, bundle):
    return ("core", "--model", folder, "--bundle", bundle, "--compute_dtype", "float32", "--device", "cpu")


def test_core(folder, core_bundle, random_model, tokenizer, capsys):
    options = (*core_options(folder, core_bundle), "--max_per_task", 10)
    report = json.loads(run(capsys, *options, "--json").out)
    scorer = GPTScorer(random_model(sequence_len=256))
    expected = core.evaluate_core(scorer, tokenizer, load_bundle(core_bundle, 10))
    assert [(t["label"], t["accuracy"]) for t in report["tasks"]] == [(r.label, r.accuracy) for r in expected]
    assert report["is_partial"]
    assert len(report["missing"]) == 18
    assert (report["model"], report["max_per_task"], report["compute_dtype"]) == (str(folder), 10, "float32")
    results = folder.with_name("export_evaluation")
    assert sorted(path.name for path in results.iterdir()) == ["core.json", "core.md", "core.png"]
    assert json.loads((results / "core.json").read_text()) == report
    printed = run(capsys, *options, "--tasks", '["copa"]', "--out", folder.with_name("elsewhere"))
    assert "mean of 1 task, partial CORE (v1 baselines): " in printed.out
    assert "copa: accuracy " in printed.err
    assert (folder.with_name("elsewhere") / "core.md").is_file()


def test_core_goes_on_after_a_kill(folder, core_bundle, capsys, monkeypatch):
    evaluate_task, done = core.evaluate_task, []

    def dying(scorer, tokenizer, task):
        if task.label == "winograd" and "killed" not in done:
            done.append("killed")
            raise KeyboardInterrupt
        done.append(task.label)
        return evaluate_task(scorer, tokenizer, task)

    monkeypatch.setattr(core, "evaluate_task", dying)
    options = core_options(folder, core_bundle)
    assert cli.main(["evaluate", *map(str, options)]) == 130
    report = json.loads(run(capsys, *options, "--json").out)
    assert done == ["copa", "arc_easy", "killed", "winograd", "lambada_openai"]
    assert [task["label"] for task in report["tasks"]] == ["copa", "arc_easy", "winograd", "lambada_openai"]


def test_another_cap_is_another_evaluation(folder, core_bundle, capsys, monkeypatch):
    def dies(*_):
        raise KeyboardInterrupt

    options = core_options(folder, core_bundle)
    with monkeypatch.context() as patch:
        patch.setattr("nanochat_lit.commands.evaluate._report_task", dies)
        assert cli.main(["evaluate", *map(str, options)]) == 130
    printed = run(capsys, *options, "--max_per_task", 5, "--json")
    assert "holds another evaluation; starting over" in printed.err
    assert {task["examples"] for task in json.loads(printed.out)["tasks"]} == {5}


TWO_RANKS = """
import multiprocessing, os, socket, sys
from nanochat_lit import cli
import nanochat_lit.engine.export, nanochat_lit.evaluation.core

def rank(number, arguments):
    os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE="2")
    sys.exit(cli.main(arguments))

with socket.create_server(("127.0.0.1", 0)) as server:
    port = server.getsockname()[1]
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
context = multiprocessing.get_context("fork")
ranks = [context.Process(target=rank, args=(number, sys.argv[1:])) for number in range(2)]
for process in ranks:
    process.start()
for process in ranks:
    process.join()
sys.exit(max(process.exitcode for process in ranks))
"""


@pytest.mark.multi_rank
def test_two_ranks_give_the_answers_of_one(folder, core_bundle, capsys):
    options = [*map(str, core_options(folder, core_bundle)), "--max_per_task", "11", "--json"]
    alone = json.loads(run(capsys, *options).out)
    together = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TWO_RANKS, "evaluate", *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert together.returncode == 0, together.stderr[-3000:]
    (line,) = [line for line in together.stdout.splitlines() if line.startswith("{")]  # torch 2.9 prints others
    report = json.loads(line)
    assert report["world_size"] == 2
    for ours, theirs in zip(report["tasks"], alone["tasks"], strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bundle", "nowhere"], "nowhere/core.yaml does not exist; give the folder of an evaluation bundle"),
        (["--bundle", "{bundle}", "--max_per_task", "0"], "max_per_task is 0"),
        (
            ["--bundle", "{bundle}", "--max_per_task", "2"],
            "arc_easy has 2 records (max_per_task; raise it to 4 or more)",
        ),
        (["--bundle", "{bundle}", "--tasks", '["piqa"]'], "does not have the CORE task piqa; available: copa"),
        (["--bundle", "{bundle}", "--model", "nowhere"], "nowhere does not exist"),
    ],
)
def test_mistakes(folder, core_bundle, arguments, message, capsys):
    filled = [argument.format(bundle=core_bundle) for argument in arguments]
    assert cli.main(["evaluate", "core", "--model", str(folder), *filled]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.splitlines()) <= 2
    assert not folder.with_name("export_evaluation").exists()


@pytest.fixture
def gsm8k(tmp_path):
    rows = [{"question": f"What is {number} + 1?", "answer": f"#### {number + 1}"} for number in range(12)]
    (tmp_path / "gsm8k.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "gsm8k.jsonl"


def test_chat(folder, gsm8k, capsys):
    options = (
        "chat",
        "--model",
        folder,
        "--tasks",
        '["gsm8k", "identity"]',
        "--paths",
        json.dumps({"gsm8k": str(gsm8k)}),
    )
    options = (*options, "--max_per_task", 4, "--max_new_tokens", 5, "--device", "cpu")
    printed = run(capsys, *options)
    assert "mean of 1 task, partial ChatCORE: 0.0000" in printed.out
    assert "arc_easy, arc_challenge, mmlu, humaneval" in printed.out
    sampled = ("--num_samples", 3, "--k", 2, "--temperature", 1, "--json")
    report = json.loads(run(capsys, *options, *sampled).out)
    assert [(t["label"], t["examples"], t["is_member"]) for t in report["tasks"]] == [
        ("gsm8k", 4, True),
        ("identity", 4, False),
    ]
    assert {(t["num_samples"], t["k"], t["pass_at_k"]) for t in report["tasks"]} == {(3, 2, 0.0)}
    results = folder.with_name("export_evaluation")
    assert sorted(path.name for path in results.iterdir()) == ["chat_core.json", "chat_core.md", "chat_core.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", '["humaneval"]', "--paths", '{"humaneval": "{gsm8k}"}'], "gsm8k.jsonl:1: "),
        (["--tasks", '["identity"]', "--k", "2"], "k is 2; use 1 to 1 (num_samples)"),
        (["--tasks", '["identity"]', "--num_samples", "2"], "2 samples at temperature 0"),
        (["--tasks", '["mmlu"]', "--paths", '{"mmlu": "{gsm8k}"}'], "gsm8k.jsonl:1: the choices must be a list"),
    ],
)
def test_mistakes_in_chat(folder, gsm8k, arguments, message, capsys):
    filled = [argument.replace("{gsm8k}", str(gsm8k)) for argument in arguments]
    assert cli.main(["evaluate", "chat", "--model", str(folder), *filled]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.splitlines()) <= 2
    assert not folder.with_name("export_evaluation").exists()


PROBLEM = {
    "prompt": "def add_one(number):\n",
    "canonical_solution": "    return number + 1\n",
    "test": "def check(candidate):\n    assert candidate(1) == 2\n",
    "entry_point": "add_one",
}


@pytest.fixture
def humaneval(tmp_path):
    (tmp_path / "humaneval.jsonl").write_text(json.dumps(PROBLEM) + "\n")
    return ("--tasks", '["humaneval"]', "--paths", json.dumps({"humaneval": str(tmp_path / "humaneval.jsonl")}))


def test_programs_run_in_the_sandbox(folder, humaneval, capsys, monkeypatch):
    """The model's own answer is nonsense; the author's, put in its place, passes."""
    if problem := missing_isolation():
        pytest.skip(problem)
    options = ("chat", "--model", folder, *humaneval, "--max_new_tokens", 5, "--device", "cpu", "--json")
    assert json.loads(run(capsys, *options).out)["tasks"][0]["accuracy"] == 0.0
    solved = program(
        {"messages": [{"content": PROBLEM["prompt"]}], **PROBLEM}, PROBLEM["prompt"] + PROBLEM["canonical_solution"]
    )
    runner = code_runner(["humaneval"], False)
    assert runner(solved)
    assert not runner(solved.replace("+ 1", "+ 2"))
    assert not runner("open('/etc/passwd').read()")


def test_without_isolation_programs_are_refused(folder, humaneval, capsys, monkeypatch, caplog):
    monkeypatch.setattr(sandbox, "missing_isolation", lambda: "not run, no Landlock; --allow_unsafe_code true runs it")
    arguments = ["evaluate", "chat", "--model", str(folder), *humaneval]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert "no Landlock" in error
    assert "--allow_unsafe_code true" in error
    assert code_runner(None, False) is None
    assert "humaneval is skipped" in caplog.text
    assert code_runner(None, True) is not None
