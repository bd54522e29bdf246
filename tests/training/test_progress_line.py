"""A terminal sees one line that rewrites itself, a pipe a line each."""

import io
import os
import sys

from nanochat_lit.training.callbacks import progress
from nanochat_lit.training.callbacks.progress import ProgressLine, bar, duration


class Terminal(io.StringIO):
    def isatty(self):
        return True


def screen(written):
    """What a terminal shows at the end, line by line."""
    return [line.rsplit("\r\x1b[2K", 1)[-1] for line in written.split("\n")]


def test_a_terminal_shows_the_last_drawing_and_what_is_kept(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    line = ProgressLine()
    assert line.is_due
    line.draw("step 1")
    assert not line.is_due, "it has just been drawn"
    line.draw("step 2")
    line.keep("val_bpb 1.5")
    line.draw("step 3")
    line.close()
    line.close()
    assert screen(terminal.getvalue()) == ["val_bpb 1.5", "step 3", ""]


def test_a_line_never_wraps(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress.shutil, "get_terminal_size", lambda *_, **__: os.terminal_size((10, 5)))
    ProgressLine().draw("x" * 30)
    assert screen(terminal.getvalue()) == ["x" * 9]


def test_a_pipe_gets_lines(capsys):
    line = ProgressLine()
    assert not line.is_due
    line.draw("step 1")
    line.keep("val_bpb 1.5")
    line.close()
    assert capsys.readouterr().err == "step 1\nval_bpb 1.5\n"


def test_bar_and_duration():
    assert [bar(share).count("#") for share in (0.0, 0.5, 1.0, 1.2)] == [0, 10, 20, 20]
    assert {len(bar(share)) for share in (0.0, 0.31, 1.0)} == {22}
    assert [duration(seconds) for seconds in (3.4, 358, 7512)] == ["0m03s", "5m58s", "2h05m"]
