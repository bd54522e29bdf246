"""A conversation in the terminal: what is typed, what is shown, and the commands that begin with a slash."""

import contextlib
import difflib
import os
import sys
from collections.abc import Generator
from pathlib import Path

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.answer_text import Piece
from nanochat_lit.engine.chat_model import Answer, ChatModel
from nanochat_lit.engine.conversation import Conversation

HELP = """\
/retry            another answer to the last question
/undo             take back the last question and its answer
/clear            forget the conversation
/system TEXT      what the model is told before the first message; without TEXT, nothing
/set NAME VALUE   temperature, top_k, top_p, max_new_tokens or seed; without them, what they are
/save FILE        write the conversation to a file
/load FILE        go on with a saved one
/help             this
/quit             leave (or Ctrl-D)
Ctrl-C stops an answer. A message that begins with a slash is written with two."""

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
# what a model writes must not steer the terminal: every control character but newline and tab is dropped
_CONTROL = {code: None for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"}


class TerminalChat:
    """Reads messages and commands from stdin until it ends; answers go to stdout, all else to stderr.

    Args:
        model: Who answers.
        conversation: Where to begin.
    """

    def __init__(self, model: ChatModel, conversation: Conversation) -> None:
        self._model = model
        self._conversation = conversation
        self._num_dropped_turns = 0
        self._commands = {
            "retry": self._retry,
            "undo": self._undo,
            "clear": self._clear,
            "system": self._set_system,
            "set": self._set,
            "save": self._save,
            "load": self._load,
            "help": lambda _: print(HELP, file=sys.stderr),
            "quit": self._quit,
        }

    def run(self) -> None:
        """Converse. Mistakes are told in a line, and the conversation goes on."""
        is_terminal = sys.stdin.isatty()
        if is_terminal:
            note("/help lists the commands, Ctrl-C stops an answer, /quit leaves")
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 (line editing and history in input())
        while self._turn(is_terminal):
            pass

    def _turn(self, is_terminal: bool) -> bool:
        """One line of input and what it brings; whether there is to be another."""
        try:
            self._obey(input("\n> " if is_terminal else "").strip())
        except EOFError:
            write("\n" if is_terminal else "")
            return False
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            write("\n")
            note("/quit or Ctrl-D leaves")
        except UserError as error:
            note(f"error: {error}")
        return True

    def _obey(self, line: str) -> None:
        if line.startswith("/") and not line.startswith("//"):
            name, _, argument = line[1:].partition(" ")
            if name not in self._commands:
                near = difflib.get_close_matches(name, self._commands, n=1)
                raise UserError(f"there is no /{name}{f'; did you mean /{near[0]}?' if near else ''}; see /help")
            self._commands[name](argument.strip())
        elif line:
            self._hear(self._conversation.ask(self._model, line.removeprefix("/")))

    def _hear(self, pieces: Generator[Piece, None, None]) -> None:
        """Show an answer as it comes, calculator calls dimly; Ctrl-C ends it, and what was said stays said."""
        answer = self._conversation.answer
        assert answer is not None
        if answer.num_dropped_turns != self._num_dropped_turns:
            self._num_dropped_turns = answer.num_dropped_turns
            note_dropped(answer)
        dim, plain = (_DIM, _PLAIN) if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else ("", "")
        brackets = {"text": ("", ""), "python": (f"{dim}[", f"]{plain}"), "python_output": (f"{dim}[= ", f"]{plain}")}
        kind = "text"
        try:
            for piece in pieces:
                if piece.type != kind:
                    write(brackets[kind][1] + brackets[piece.type][0], is_model_text=False)
                    kind = piece.type
                write(piece.text)
        except KeyboardInterrupt:
            pass
        finally:
            answer.stop()
            pieces.close()
            write(brackets[kind][1] + "\n", is_model_text=False)
        note_cut(answer)

    def _quit(self, _: str) -> None:
        raise EOFError  # as Ctrl-D

    def _retry(self, _: str) -> None:
        pieces = self._conversation.retry(self._model)
        if self._conversation.settings.temperature == 0:
            note("at temperature 0 the answer is always the same; /set temperature 0.8 varies it")
        self._hear(pieces)

    def _undo(self, _: str) -> None:
        note(f"taken back: {self._conversation.undo()}")

    def _clear(self, _: str) -> None:
        self._conversation.clear()
        note("conversation forgotten")

    def _set_system(self, text: str) -> None:
        self._conversation.system = text
        note(f"system prompt: {text or 'none'}")

    def _set(self, argument: str) -> None:
        name, _, value = argument.partition(" ")
        if argument:
            self._conversation.settings = self._conversation.settings.changed(name, value.strip())
        settings = self._conversation.settings.numbers()
        note(", ".join(f"{name} {value}" for name, value in settings.items()))

    def _save(self, name: str) -> None:
        path = _path(name)
        self._conversation.save(path)
        note(f"saved to {path}")

    def _load(self, name: str) -> None:
        self._conversation = Conversation.load(_path(name))
        self._num_dropped_turns = 0
        note(f"{len(self._conversation.messages) // 2} turn(s) loaded")


def write(text: str, is_model_text: bool = True) -> None:
    """Show text at once; characters that the terminal's encoding lacks become question marks."""
    text = text.translate(_CONTROL) if is_model_text and sys.stdout.isatty() else text
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def note(text: str) -> None:
    """Tell the person something that is no part of the conversation."""
    print(f"({text})", file=sys.stderr, flush=True)


def note_cut(answer: Answer) -> None:
    """Say so if an answer ended because it had no more tokens."""
    if answer.finish_reason == "length":
        note("the answer was cut: max_new_tokens or the model's context was used up")


def note_dropped(answer: Answer) -> None:
    """Say so if the model does not see all of the conversation."""
    if answer.num_dropped_turns:
        note(f"the conversation outgrew the context: {answer.num_dropped_turns} oldest turn(s) dropped")


def _path(name: str) -> Path:
    if not name:
        raise UserError("name a file, as in /save chat.json")
    return Path(name).expanduser()
