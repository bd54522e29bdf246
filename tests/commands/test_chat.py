import io
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from nanochat_lit import cli
from nanochat_lit.commands.chat import ChatSession
from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.engine import Engine
from nanochat_lit.engine.export import save_export
from nanochat_lit.model import GPT
from nanochat_lit.tokenizer import Tokenizer, render_for_completion

SETTINGS = {"temperature": 0.0, "top_k": 0, "max_new_tokens": 20}


@pytest.fixture
def folder(tmp_path: Path, random_model: Callable[..., GPT], tokenizer: Tokenizer) -> Path:
    save_export(tmp_path / "export", random_model(sequence_len=96), tokenizer, SETTINGS)
    return tmp_path / "export"


class ScriptedEngine(Engine):
    """Says fixed tokens, one list per answer, and remembers the prompts."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, answers: Sequence[list[int]]) -> None:
        super().__init__(model, tokenizer)
        self.answers, self.prompts = list(answers), []

    def stream(self, prompt_ids, **settings):
        self.prompts.append(list(prompt_ids))
        return iter([([token], [1]) for token in self.answers.pop(0)])


@pytest.fixture
def call(tokenizer: Tokenizer) -> list[int]:
    special, encode = tokenizer.special_ids, tokenizer.encode
    tool = [special["<|python_start|>"], *encode("1+2"), special["<|python_end|>"]]
    result = [special["<|output_start|>"], *encode("3"), special["<|output_end|>"]]
    return [*encode("It is "), *tool, *result, *encode("3 日本."), special["<|assistant_end|>"]]


def session_of(model: GPT, tokenizer: Tokenizer, answers: Sequence[list[int]]) -> ChatSession:
    return ChatSession(ScriptedEngine(model, tokenizer, answers), dict(SETTINGS))


def test_answer_in_pieces_and_history(random_model, tokenizer: Tokenizer, call: list[int]) -> None:
    session = session_of(random_model(sequence_len=256), tokenizer, [call, call])
    pieces = list(session.ask("what is 1+2?"))
    assert not any("\ufffd" in piece.text for piece in pieces)  # never half a character
    joined = {kind: "".join(p.text for p in pieces if p.type == kind) for kind in ("text", "python", "python_output")}
    assert joined == {"text": "It is 3 日本.", "python": "1+2", "python_output": "3"}
    assert not session.was_cut
    list(session.ask("and again?"))
    user = {"role": "user", "content": "what is 1+2?"}
    parts = [
        {"type": "text", "text": "It is "},
        {"type": "python", "text": "1+2"},
        {"type": "python_output", "text": "3"},
        {"type": "text", "text": "3 日本."},
    ]
    history = [user, {"role": "assistant", "content": parts}, {"role": "user", "content": "and again?"}]
    assert session.engine.prompts[1] == render_for_completion(tokenizer, {"messages": history})
    session.clear()
    assert session.messages == []


def test_oldest_turns_are_dropped(random_model, tokenizer: Tokenizer, call: list[int]) -> None:
    session = session_of(random_model(sequence_len=96), tokenizer, [call] * 9)
    dropped = []
    for turn in range(9):
        list(session.ask(f"question {turn}"))
        dropped.append(session.num_dropped_turns)
    assert dropped[0] == 0
    assert sum(dropped) > 0
    assert all(len(prompt) <= 96 - 20 for prompt in session.engine.prompts)
    assert len(session.messages) % 2 == 0
    with pytest.raises(UserError, match="context is 96"):
        list(session.ask("word " * 200))
    assert len(session.messages) % 2 == 0  # the failed message is forgotten
    session.engine.answers.append(call)
    list(session.ask("fine"))


def test_a_stopped_answer_stays_in_the_history(random_model, tokenizer: Tokenizer, call: list[int]) -> None:
    session = session_of(random_model(), tokenizer, [call])
    pieces = session.ask("hi")
    next(pieces)
    pieces.close()
    assert [message["role"] for message in session.messages] == ["user", "assistant"]


def test_one_answer_alone_on_stdout(folder: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["chat", "--model", str(folder), "--compute_dtype", "float32", "--device", "cpu"]
    assert cli.main([*arguments, "-p", "hello"]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("\n")
    assert "cut" in err or not err
    assert cli.main([*arguments, "--prompt", "hello"]) == 0
    assert capsys.readouterr().out == out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", " "], "the prompt is empty"),
        (["-p", "word " * 300], "context is 96"),
        (["-p", "x", "--temperature", "-1"], "temperature is -1"),
        (["-p", "x", "--max_new_tokens", "0"], "max_new_tokens is 0"),
        (["-p", "x", "--model", "nowhere"], "no folder nowhere"),
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
    assert "conversation forgotten" in err
    assert "context is 96" in err
    assert "/clear forgets" in err


def test_chat_imports_little() -> None:
    """What makes a person wait for nothing; a fresh process, because this one has imported all."""
    program = (
        "import sys, nanochat_lit.commands.chat;"
        "heavy = 'lightning torchmetrics datasets pyarrow matplotlib nanochat_lit.evaluation nanochat_lit.data'.split();"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
