"""The terminal chat, piped and in a pseudo terminal."""

import contextlib
import io
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nanochat_lit.commands.chat import Screen, TerminalChat
from nanochat_lit.engine.answer_text import Piece
from nanochat_lit.engine.chat_session import ChatSession
from nanochat_lit.engine.sampling_params import CHAT_PARAMS


@pytest.fixture
def converse(
    scripted_model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, list[str]]]:
    """What is shown (stdout, lines of stderr) when these lines are typed."""

    def run(*lines: str, **settings: float) -> tuple[str, list[str]]:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        TerminalChat(scripted_model(), ChatSession(settings=CHAT_PARAMS.updated(settings))).run()
        out, err = capsys.readouterr()
        return out, err.splitlines()

    return run


def test_answers_and_calculator(converse) -> None:
    out, err = converse("hello", "", "a sum", "//slash")
    assert out == "hello! (seed 0)\nIt is [12+30] [= 42] 42.\n/slash! (seed 2)\n"
    assert err == []


def test_retry_undo_clear(converse) -> None:
    out, err = converse("one", "/retry", "two", "/undo", "/clear", "three", "/undo", "/undo", "/retry")
    assert out == "one! (seed 0)\none! (seed 1)\ntwo! (seed 2)\nthree! (seed 0)\n"
    empty = "(error: the conversation is empty)"
    assert err == ["(removed: two)", "(conversation cleared)", "(removed: three)", empty, empty]
    assert converse("one", "/retry", temperature=0.0)[1] == [
        "(at temperature 0 the answer is always the same; /set temperature 0.8 varies it)"
    ]


def test_settings_and_system_prompt(converse) -> None:
    out, err = converse("/set seed 7", "hello", "/set", "/set warmth 1", "/set top_p", "/system be kind", "/system")
    assert out == "hello! (seed 7)\n"
    settings = "(temperature 0.6, top_k 50, top_p 1.0, max_new_tokens 256, seed 7)"
    assert err[:2] == [settings, settings]
    assert err[2].startswith("(error: unknown setting 'warmth'; use temperature")
    assert err[3] == "(error: top_p is '', not a number; use 1 (off) or a cumulative probability, such as 0.9)"
    assert err[4:] == ["(system prompt: be kind)", "(system prompt: none)"]


def test_save_and_load(converse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "c.json"
    _, err = converse("/save ~/c.json", "hello", "/save", "/save ~/c.json")
    name_one = "(error: give a file name, as in /save chat.json)"
    assert err == ["(error: the conversation is empty)", name_one, f"(saved to {path})"]
    out, err = converse("/load ~/c.json", "again", "/undo", "/undo", f"/load {tmp_path}/none.json")
    assert out == "> hello\nhello! (seed 0)\nagain! (seed 1)\n", "what was loaded is shown"
    assert err[:3] == ["(1 turn(s) loaded)", "(removed: again)", "(removed: hello)"]
    assert err[3].endswith("none.json: no such file)")
    before = path.read_text()
    _, err = converse("other", "/save ~/c.json")
    assert err == [f"(error: {path} already exists; give another name)"]
    assert path.read_text() == before
    _, err = converse("/load ~/c.json", "more", "/save ~/c.json")
    assert err[-1] == f"(saved to {path})", "one's own file may be written again"


def test_mistakes_take_one_line(converse) -> None:
    out, err = converse("fail", "break", "/undp", "/nonsense", "hello", "/help", "/quit", "never")
    assert out == "half of \nhello! (seed 1)\n"
    assert err[:4] == [
        "(error: this cannot be answered: it's <b>)",
        "(error: the model fell silent)",
        "(error: there is no /undp; did you mean /undo?; see /help)",
        "(error: there is no /nonsense; see /help)",
    ]
    commands = re.findall(r"^/(\w+)", "\n".join(err[4:]), re.MULTILINE)
    assert commands == ["retry", "undo", "clear", "system", "set", "save", "load", "help", "quit"]


def test_lines_break_between_words(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("NO_COLOR", "1")
    screen = Screen()
    words = ["A wo", "rd is never ", "cut in two", ", ", "\u7a93" * 9, " incomprehensibilities-of-length ", "end"]
    screen.show(Piece("text", text) for text in words)
    screen.end()
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["A word is never cut ", "in two, ", "\u7a93" * 9 + " ", "incomprehensibilities-of-length ", "end"]


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
from conftest import ScriptedModel
from nanochat_lit.commands.chat import TerminalChat
from nanochat_lit.engine.chat_session import ChatSession
TerminalChat(ScriptedModel(pause_s=0.02), ChatSession()).run()
"""


class Terminal:
    """A program in a pseudo terminal."""

    def __init__(self) -> None:
        import pty

        self.master, slave = pty.openpty()
        tests = Path(__file__).parents[1]
        environment = {**os.environ, "PYTHONPATH": str(tests.parent), "TERM": "xterm"}
        environment.pop("NO_COLOR", None)
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(tests=str(tests))],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
        )
        os.close(slave)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait_for(self, text: str, timeout_s: float = 30) -> str:
        """What was shown since the last time, up to this text."""
        deadline = time.monotonic() + timeout_s
        while text not in self.shown:
            assert time.monotonic() < deadline, f"{text!r} is not in {self.shown!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                self.shown += os.read(self.master, 4096).decode()
        before, _, self.shown = self.shown.partition(text)
        return before + text


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    pytest.importorskip("pty")
    terminal = Terminal()
    yield terminal
    terminal.process.kill()
    terminal.process.wait()
    os.close(terminal.master)


def test_a_terminal(terminal: Terminal) -> None:
    terminal.wait_for("/help lists the commands")
    terminal.wait_for("> ")
    terminal.type("endless\n")
    terminal.wait_for("more more")
    os.kill(terminal.process.pid, signal.SIGINT)
    terminal.wait_for("\n> ")
    # nothing is lost: the conversation goes on, and the stopped answer is part of it
    terminal.type("a sum\n")
    assert "\x1b[2m[12+30]\x1b[0m \x1b[2m[= 42]\x1b[0m 42." in terminal.wait_for("42.\r\n")
    terminal.wait_for("> ")
    terminal.type("\x1b[200~one\rtwo\rthree\x1b[201~\r")  # a paste of three lines is one question
    terminal.wait_for("three! (seed 2)")
    terminal.wait_for("> ")
    terminal.type("/undo\n")
    terminal.wait_for("(removed: one")
    terminal.type("/undo\n")
    terminal.wait_for("(removed: a sum)")
    terminal.type("/undo\n")
    terminal.wait_for("(removed: endless)")
    terminal.wait_for("> ")
    terminal.type("\x16\x1b[31mred\n")  # Ctrl-V: the next key as it is
    shown = terminal.wait_for("red! (seed 3)")
    assert "[31mred! (seed 3)" in shown
    assert "\x1b[31m" not in shown, "what a model says does not steer the terminal"
    terminal.wait_for("> ")
    # at the prompt: a person who meant to stop an answer loses nothing. A signal between the prompt and readline's wait for a
    # key is noticed at the next key or signal only, so it is sent until it is noticed.
    for _ in range(15):
        os.kill(terminal.process.pid, signal.SIGINT)
        with contextlib.suppress(AssertionError):
            terminal.wait_for("(/quit or Ctrl-D leaves)", timeout_s=2)
            break
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.process.wait(20) == 0
