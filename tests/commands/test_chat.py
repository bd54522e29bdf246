import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nanochat_lit import cli
from nanochat_lit.engine.export import save_export
from nanochat_lit.model import GPT
from nanochat_lit.tokenizer import Tokenizer

SETTINGS = {"temperature": 0.0, "top_k": 0, "max_new_tokens": 20}


@pytest.fixture
def folder(tmp_path: Path, random_model: Callable[..., GPT], tokenizer: Tokenizer) -> Path:
    save_export(tmp_path / "export", random_model(sequence_len=96), tokenizer, SETTINGS)
    return tmp_path / "export"


def test_one_answer_alone_on_stdout(folder: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["chat", "--model", str(folder), "--compute_dtype", "float32", "--device", "cpu"]
    assert cli.main([*arguments, "-p", "hello"]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("\n")
    assert "truncated" in err or not err
    assert cli.main([*arguments, "--prompt", "hello"]) == 0
    assert capsys.readouterr().out == out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", " "], "the prompt is empty"),
        (["-p", "word " * 300], "context is 96"),
        (["-p", "x", "--temperature", "-1"], "temperature is -1"),
        (["-p", "x", "--top_p", "2"], "top_p is 2"),
        (["-p", "x", "--max_new_tokens", "0"], "max_new_tokens is 0"),
        (["-p", "x", "--model", "nowhere"], "nowhere does not exist"),
    ],
)
def test_mistakes(folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["chat", "--model", str(folder), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert len(err.strip().splitlines()) <= 2


def test_conversation(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"hello\n\n/clear\n{'word ' * 300}\nhello\n/what\n/quit\nnever\n"))
    assert cli.main(["chat", "--model", str(folder), "--seed", "3"]) == 0
    out, err = capsys.readouterr()
    assert out
    assert "conversation cleared" in err
    assert "context is 96" in err
    assert "there is no /what; see /help" in err


def test_chat_imports_little() -> None:
    """What makes a person wait for nothing; a fresh process, because this one has imported all."""
    program = (
        "import sys, nanochat_lit.commands.chat;"
        "heavy = 'lightning torchmetrics datasets pyarrow matplotlib nanochat_lit.evaluation nanochat_lit.data'.split();"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
