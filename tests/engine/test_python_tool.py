"""The Python tool: values as Python's prompt shows them, silence where a program fails, and only for those who ask."""

import pytest
import torch

from nanochat_lit import cli
from nanochat_lit.common.errors import UserError
from nanochat_lit.engine import sandbox
from nanochat_lit.engine.engine import Engine
from nanochat_lit.engine.export import save_export
from nanochat_lit.engine.python_tool import MAX_PROGRAM_CHARS, check_python_tool, run_tool
from nanochat_lit.engine.tool_use import ToolRow


@pytest.fixture(autouse=True)
def _isolation():
    if problem := sandbox.missing_isolation():
        pytest.skip(problem)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("sum(range(101))", "5050"),
        ("[n * n for n in range(4)]", "[0, 1, 4, 9]"),
        ("import math\nmath.factorial(10)", "3628800"),
        ("def twice(text):\n    return text * 2\n\nprint(twice('ab'))\ntwice(3)", "abab\n6"),
        ("for n in (1, 2):\n    print(n)", "1\n2"),
        ("x = '}{'; x", "}{"),
        ("None", None),
        ("1 +", None),
        ("raise ValueError('no')", None),
        ("print('a' * 129)", None),
        ("while True: pass", None),
        ("'never'; " * MAX_PROGRAM_CHARS, None),
        ("open('/etc/passwd').read()[:9]", None),
        ("import os; os.fork()", None),
        ("import socket; socket.socket()", None),
    ],
)
def test_programs(program, said):
    assert run_tool(program) == said


def test_sums_start_no_process(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a process was started")

    monkeypatch.setattr(sandbox, "run_python", refuse)
    assert run_tool("1,234 + 1") == "1235"
    assert run_tool("'strawberry'.count('r')") == "3"


def test_calls_do_not_see_each_other():
    assert run_tool("left = 5; open('left.txt', 'w').write('x'); left") == "1\n5"
    assert run_tool("left") is None
    assert run_tool("import os; os.path.exists('left.txt')") == "False"


def calling(tokenizer, program):
    """The result that a row of generation is forced to say after a call."""
    special = tokenizer.special_ids
    return [special["<|python_start|>"], *tokenizer.encode(program), special["<|python_end|>"]]


def forced(row):
    tokens = []
    while (token := row.next_forced()) is not None:
        tokens.append(token)
    return tokens


def test_a_row_says_what_python_says_only_where_it_is_asked_for(tokenizer):
    special = tokenizer.special_ids
    for tool, said in ((run_tool, "5050"), (None, None)):
        row = ToolRow(tokenizer) if tool is None else ToolRow(tokenizer, tool)
        for token in calling(tokenizer, "sum(range(101))"):
            row.observe(token)
        wanted = [special["<|output_start|>"], *tokenizer.encode("5050"), special["<|output_end|>"]]
        assert forced(row) == (wanted if said else [])


def test_the_engine_asks_its_tool(random_model, tokenizer, monkeypatch):
    """With what is sampled written by hand: a call, then one letter after the other."""
    asked, call = [], iter([*calling(tokenizer, "f(1)"), *tokenizer.encode("a" * 99)])
    monkeypatch.setattr("nanochat_lit.engine.engine.sample_rows", lambda *_: torch.tensor([next(call)]))

    def tool(program):
        asked.append(program)
        return "42"

    engine = Engine(random_model(), tokenizer, tool=tool)
    (tokens,) = engine.generate([tokenizer.bos_id, 7], max_new_tokens=20)
    special = tokenizer.special_ids
    wanted = [special["<|output_start|>"], *tokenizer.encode("42"), special["<|output_end|>"]]
    start = len(calling(tokenizer, "f(1)"))
    assert asked == ["f(1)"]
    assert tokens[start : start + len(wanted)] == wanted


def test_without_isolation_it_is_refused_at_the_start(random_model, tokenizer, tmp_path, monkeypatch, capsys):
    save_export(tmp_path / "export", random_model(), tokenizer)
    command = [
        "chat",
        "--model",
        str(tmp_path / "export"),
        "-p",
        "hello",
        "--max_new_tokens",
        "3",
        "--python_tool",
        "true",
    ]
    assert cli.main(command) == 0
    capsys.readouterr()
    monkeypatch.setattr(sandbox, "missing_isolation", lambda: "not run: no Landlock")
    with pytest.raises(UserError, match="the Python tool: not run: no Landlock"):
        check_python_tool()
    assert cli.main(command) == 2
    assert "the Python tool: not run: no Landlock" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
