"""The Python examples of the README and of model cards print what a reader expects, with a model that knows the answers."""

import re
import sys
from pathlib import Path

import pytest

from nanochat_lit import cli

CAPITAL = "The capital of France is Paris."


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_the_readme_prints_an_answer(answering_export, capsys):
    (code,) = [
        block
        for block in python_blocks((Path(__file__).parents[2] / "README.md").read_text("utf-8"))
        if "load_export" in block
    ]
    exec(code.replace("runs/quickstart/export", answering_export.as_posix()), {})
    assert capsys.readouterr().out == "python 12+30\npython_output 42\ntext The answer is 42.\n"


def test_a_model_card_prints_an_answer(answering_export, tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers")
    card = tmp_path / "card"
    assert cli.main(["export", "--model", str(answering_export), "--out", str(card)]) == 0
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", None)  # nothing is asked
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code = python_blocks((card / "README.md").read_text("utf-8"))[0]
    exec(code, {})
    assert capsys.readouterr().out.splitlines()[-1] == "I am nanochat."


def test_chat_prints_an_answer_and_uses_the_calculator(answering_export, capsys):
    for question, answer in {
        "What is the capital of France?": CAPITAL,
        "What is 12 + 30?": "The answer is 42.",
    }.items():
        assert cli.main(["chat", "--model", str(answering_export), "-p", question]) == 0
        captured = capsys.readouterr()
        assert captured.out == f"{answer}\n"
        assert "base model" not in captured.err


def test_models_that_cannot_answer_say_so(pretrained: Path, capsys):
    assert cli.main(["chat", "--model", str(pretrained), "-p", "Hello", "--max_new_tokens", "2"]) == 0
    assert "this is a base model" in capsys.readouterr().err
