"""HumanEval: what is run, from what a model may write; the authors' own solutions pass."""

import json
from types import SimpleNamespace

import pytest

from nanochat_lit.common.errors import UserError
from nanochat_lit.tasks.base import Task
from nanochat_lit.tasks.humaneval import HumanEval, extract_code, leading_imports, program


def run_trusted(code):
    try:
        exec(code, {})
    except Exception:  # noqa: BLE001 - whatever it is, the program has failed
        return False
    return True


CONVERSATION = {
    "messages": [{"role": "user", "content": "import math\n\ndef area(r):\n    ...\n"}],
    "entry_point": "area",
    "test": "def check(candidate):\n    assert round(candidate(1), 2) == 3.14\n",
}


@pytest.mark.parametrize(
    ("completion", "is_right"),
    [
        ("```python\ndef area(r):\n    return math.pi * r * r\n```", True),
        ("Here it is:\n```\ndef area(r):\n    return 3.14159\n```\nand ```python\nraise SystemError\n```", True),
        ("```python\ndef area(r):\n    return 3.14159", True),
        ("def area(r):\n    return math.pi * r**2\n", True),
        ("def area(r):\n    return 3\n", False),
        ("It is pi times the square.", False),
        ("", False),
    ],
)
def test_the_program_decides(completion, is_right):
    assert run_trusted(program(CONVERSATION, completion)) is is_right


def test_code_is_taken_from_the_first_fence():
    assert extract_code("a\n```py\nx = 1\n```\n```\ny\n```") == "x = 1"
    assert extract_code("x = 1") == "x = 1"


def test_imports_at_the_top():
    source = "# a comment\nfrom typing import List\nimport math\n\n\ndef f():\n    import os\n"
    assert leading_imports(source) == "from typing import List\nimport math"


def test_the_real_problems(shared):
    task = HumanEval(run_trusted, path=shared / "data/humaneval/HumanEval.jsonl.gz")
    assert isinstance(task, Task)
    assert len(task) == 164
    conversations = [task[place] for place in range(len(task))]
    assert all(task.evaluate(c, c["messages"][-1]["content"]) for c in conversations)
    assert not any(task.evaluate(c, f"def {c['entry_point']}(*args):\n    return 'wrong'") for c in conversations)


@pytest.mark.parametrize(("answer", "is_right"), [
    (True, True), (False, False), (SimpleNamespace(ok=True), True), (SimpleNamespace(ok=False), False),
])  # fmt: skip
def test_what_runs_the_code_may_return(tmp_path, answer, is_right):
    row = {"prompt": "def f():\n", "canonical_solution": "    pass", "test": "def check(f): ...", "entry_point": "f"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    task = HumanEval(lambda _: answer, path=tmp_path / "a.jsonl")
    assert task.evaluate(task[0], "x") is is_right
    task.run_code = lambda _: "fine"
    with pytest.raises(UserError, match="run_code returned 'fine'; it must return a bool"):
        task.evaluate(task[0], "x")


def test_nothing_is_run_without_a_sandbox(shared):
    task = HumanEval(path=shared / "data/humaneval/HumanEval.jsonl.gz")
    with pytest.raises(UserError, match="pass an isolating run_code"):
        task.evaluate(task[0], "x")
