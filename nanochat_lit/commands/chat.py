"""nanochat-lit chat: talk to an export in the terminal. Keeps imports light to start quickly."""

import contextlib
import difflib
import os
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Generator, Iterable
from pathlib import Path

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.answer_text import Piece
from nanochat_lit.engine.calculator import calculate
from nanochat_lit.engine.chat_session import Answer, ChatModel, ChatSession
from nanochat_lit.engine.engine import Engine
from nanochat_lit.engine.engine_chat import EngineChat
from nanochat_lit.engine.export import find_model, limits_of, load_export, load_generation_defaults, read_provenance
from nanochat_lit.engine.sampling_params import RULES, SamplingParams
from nanochat_lit.engine.tool_use import Tool
from nanochat_lit.model.packed import Quantization, describe_kernel

HELP = """\
/retry            generate another answer to the last question
/undo             remove the last question and its answer
/clear            start a new conversation
/system TEXT      set the system prompt; without TEXT, remove it
/set NAME VALUE   set temperature, top_k, top_p, max_new_tokens or seed; without arguments, show them
/save FILE        write the conversation to a file
/load FILE        continue a saved conversation
/help             show this help
/quit             exit (or Ctrl-D)
Ctrl-C stops an answer. Type // to begin a message with a slash."""

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
# control characters to drop: all except newline and tab
_CONTROL = {code: None for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"}


class TerminalChat:
    """Reads messages and commands from stdin; writes answers to stdout and everything else to stderr.

    Args:
        model: Model that answers.
        conversation: Initial conversation.
    """

    def __init__(self, model: ChatModel, conversation: ChatSession) -> None:
        self._model = model
        self._conversation = conversation
        self._num_dropped_turns = 0
        self._own_files: set[Path] = set()
        names = ("retry", "undo", "clear", "system", "set", "save", "load", "help", "quit")
        self._commands = {name: getattr(self, f"_{name}") for name in names}

    def run(self) -> None:
        """Run until stdin ends. User errors are printed and do not end the conversation."""
        is_terminal = sys.stdin.isatty()
        if is_terminal:
            note("/help lists the commands, Ctrl-C stops an answer, /quit leaves")
            with contextlib.suppress(ImportError):
                import readline  # enables line editing and history in input()

                readline.parse_and_bind("set enable-bracketed-paste on")  # pasted lines form one message
        while self._turn(is_terminal):
            pass

    def _turn(self, is_terminal: bool) -> bool:
        """Process one line of input; return whether to continue."""
        try:
            self._obey(input("\n> " if is_terminal else "").strip())
        except EOFError:
            print(end="\n" if is_terminal else "")
            return False
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            print()
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
        """Stream an answer, with dimmed calculator calls. Ctrl-C stops it and keeps the text so far."""
        answer = self._conversation.answer
        assert answer is not None
        if answer.num_dropped_turns != self._num_dropped_turns:
            self._num_dropped_turns = answer.num_dropped_turns
            if answer.num_dropped_turns:
                note(f"the conversation exceeds the context: dropped the {answer.num_dropped_turns} oldest turn(s)")
        screen = Screen()
        try:
            screen.show(pieces)
        except KeyboardInterrupt:
            pass
        finally:
            answer.stop()
            pieces.close()
            screen.end()
        note_cut(answer)

    def _help(self, _: str) -> None:
        width = shutil.get_terminal_size().columns if sys.stderr.isatty() else 10_000
        for line in HELP.splitlines():
            print(textwrap.fill(line, width, subsequent_indent=" " * 18), file=sys.stderr)

    def _quit(self, _: str) -> None:
        raise EOFError  # as Ctrl-D

    def _retry(self, _: str) -> None:
        pieces = self._conversation.retry(self._model)
        if self._conversation.settings.temperature == 0:
            note("at temperature 0 the answer is always the same; /set temperature 0.8 varies it")
        self._hear(pieces)

    def _undo(self, _: str) -> None:
        note(f"removed: {self._conversation.undo()}")

    def _clear(self, _: str) -> None:
        self._conversation.clear()
        note("conversation cleared")

    def _system(self, text: str) -> None:
        self._conversation.system = text
        note(f"system prompt: {text or 'none'}")

    def _set(self, argument: str) -> None:
        name, _, value = argument.partition(" ")
        if argument:
            self._conversation.settings = self._conversation.settings.changed(name, value.strip())
        settings, off = self._conversation.settings.numbers(), SamplingParams().numbers()
        shown = {name: value for name, value in settings.items() if name not in RULES or value != off[name]}
        note(", ".join(f"{name} {value}" for name, value in shown.items()))

    def _save(self, name: str) -> None:
        path = _path(name)
        if path.exists() and path not in self._own_files:
            self._conversation.check_saved(path)
            if not (sys.stdin.isatty() and input(f"replace {path}? [y/N] ").strip().lower() in ("y", "yes")):
                raise UserError(f"{path} already exists; give another name")
        self._conversation.save(path)
        self._own_files.add(path)
        note(f"saved to {path}")

    def _load(self, name: str) -> None:
        path = _path(name)
        self._conversation = ChatSession.load(path)
        self._own_files.add(path)
        self._num_dropped_turns = 0
        for message in self._conversation.messages:
            screen, content = Screen(), message["content"]
            screen.write("> " if message["role"] == "user" else "")
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            screen.show(Piece(part["type"], part["text"]) for part in parts)
            screen.end()
        note(f"{len(self._conversation.messages) // 2} turn(s) loaded")


class Screen:
    """Streams text to stdout; in a terminal, wraps lines between words."""

    def __init__(self) -> None:
        self._last = "\n"
        self._column = 0
        self._width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
        self._word = ""
        self._kind = "text"

    def write(self, text: str) -> None:
        """Write text; in a terminal, holds back incomplete words."""
        if not self._width:
            self._put(text)
            return
        for character in text.translate(_CONTROL):  # model output must not contain terminal control sequences
            if character not in " \n\t":
                self._word += character
                continue
            self._end_word()
            self._put(character)
            self._column = 0 if character == "\n" else self._column + 1
        sys.stdout.flush()

    def show(self, pieces: Iterable[Piece]) -> None:
        """Write chunks of an answer, with calculator calls dimmed and in brackets."""
        for piece in pieces:
            if piece.type != self._kind:
                self._close_brackets()
                is_apart = (self._word or self._last)[-1].isspace()
                if not is_apart and not (piece.type == "text" and piece.text[:1] in " \n.,;:!?)"):
                    self.write(" ")
                self._open_brackets(piece.type)
            self.write(piece.text)

    def end(self) -> None:
        """End the answer with a newline."""
        self._close_brackets()
        self.write("\n")
        sys.stdout.flush()

    def _open_brackets(self, kind: str) -> None:
        self._kind = kind
        if kind != "text":
            self._escape(_DIM)
            self.write("[" if kind == "python" else "[= ")

    def _close_brackets(self) -> None:
        if self._kind != "text":
            self.write("]")
            self._escape(_PLAIN)
            self._kind = "text"

    def _escape(self, code: str) -> None:
        self._end_word()
        if self._width and not os.environ.get("NO_COLOR"):
            sys.stdout.write(code)

    def _end_word(self) -> None:
        """Write the held-back word, on a new line if it does not fit."""
        width = sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in self._word)
        if self._column and self._column + width > self._width:
            self._put("\n")
            self._column = 0
        self._put(self._word)
        self._column += width
        self._word = ""

    def _put(self, text: str) -> None:
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
        self._last = text[-1:] or self._last
        if not self._width:
            sys.stdout.flush()


def note(text: str) -> None:
    """Print a status message to stderr."""
    print(f"({text})", file=sys.stderr, flush=True)


def note_cut(answer: Answer) -> None:
    """Print a note if an answer was truncated."""
    if answer.finish_reason == "length":
        note("the answer was truncated by max_new_tokens or the model's context")


def _path(name: str) -> Path:
    if not name:
        raise UserError("give a file name, as in /save chat.json")
    return Path(name).expanduser()


def chat(  # noqa: PLR0913 - every option of the command is a parameter
    model: str,
    prompt: str | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    max_new_tokens: int | None = None,
    seed: int = 0,
    device: str | None = None,
    compute_dtype: str = "auto",
    quantize: Quantization | None = None,
    adapter: str | None = None,
    python_tool: bool = False,
) -> None:
    """Chat with a model in the terminal, or print one answer with -p.

    Args:
        model: Export, run folder, .ckpt file or hf://OWNER/NAME.
        prompt: Print the answer to this message and exit; null starts an interactive conversation.
        temperature: Sampling temperature; 0 is greedy. null is the export's default.
        top_k: Sample from this many most likely tokens; 0 disables the limit. null is the export's default.
        top_p: Sample from the most likely tokens that together reach this probability; 1 disables the limit. null is 1.
        max_new_tokens: Maximum length of an answer, tokens; null is the export's default.
        seed: Sampling seed; the same seed gives the same answers to the same messages.
        device: cpu, cuda or mps; null selects the fastest available device.
        compute_dtype: auto, bfloat16, float16 or float32.
        quantize: int8 stores the weights in 8 bits, int4 in 4.5 (CPU only); null keeps them in compute_dtype.
        adapter: Folder of a LoRA adapter of this model; null answers with the model as it is.
        python_tool: Run Python code that the model writes in a sandbox, in addition to the calculator; an error if no
            sandbox is available.
    """
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "max_new_tokens": max_new_tokens, "seed": seed}
    conversation = ChatSession(settings=load_generation_defaults(model).updated(given))
    if prompt is not None and not prompt.strip():
        raise UserError("the prompt is empty; write a message after -p, or omit -p for a conversation")
    tool: Tool = calculate
    if python_tool:
        from nanochat_lit.engine.python_tool import check_python_tool, run_tool

        check_python_tool()
        tool = run_tool
    gpt, tokenizer = load_export(model, device, compute_dtype, cast_weights=True, quantize=quantize, adapter=adapter)
    print(f"kernel: {describe_kernel(gpt)}", file=sys.stderr)
    limits = limits_of(read_provenance(find_model(model)))
    with EngineChat(Engine(gpt, tokenizer, num_slots=1, tool=tool)) as chat_model:
        if prompt is None:
            if limits:
                note(limits)
            TerminalChat(chat_model, conversation).run()
            return
        screen = Screen()
        screen.show(piece for piece in conversation.ask(chat_model, prompt) if piece.type == "text")
        screen.end()
        assert conversation.answer is not None
        note_cut(conversation.answer)
        if limits:
            note(limits)
