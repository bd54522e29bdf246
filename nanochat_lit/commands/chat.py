"""nanochat-lit chat: talk to an export in the terminal. Imports little, because a person is waiting for the first word."""

import contextlib
import os
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.engine import Engine
from nanochat_lit.engine.export import load_export, load_generation_defaults
from nanochat_lit.tokenizer import parse_completion, render_for_completion
from nanochat_lit.tokenizer.special_tokens import OUTPUT_END, OUTPUT_START, PYTHON_END, PYTHON_START

HELP = "/clear forgets the conversation, /quit (or Ctrl-D) leaves, Ctrl-C stops an answer"
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
# what a model writes must not steer the terminal: every control character but newline and tab is dropped
_CONTROL = {code: None for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"}


def chat(
    model: str,
    prompt: str | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    max_new_tokens: int | None = None,
    seed: int = 0,
    device: str | None = None,
    compute_dtype: str = "auto",
) -> None:
    """Talk to a chat model, or print one answer with -p.

    Args:
        model: Export folder.
        prompt: Answer this message alone on stdout and leave; null starts a conversation.
        temperature: 0 takes the likeliest token, higher is more varied; null is the export's default.
        top_k: Sample among this many likeliest tokens, 0 is all; null is the export's default.
        max_new_tokens: Longest answer in tokens; null is the export's default.
        seed: The same seed gives the same answers to the same messages.
        device: cpu, cuda or mps; null is the fastest there is.
        compute_dtype: auto, bfloat16, float16 or float32.
    """
    given = {"temperature": temperature, "top_k": top_k, "max_new_tokens": max_new_tokens}
    settings = {
        **load_generation_defaults(model),
        **{name: value for name, value in given.items() if value is not None},
    }
    if prompt is not None and not prompt.strip():
        raise UserError("the prompt is empty; write a message after -p, or leave -p out for a conversation")
    gpt, tokenizer = load_export(model, device, compute_dtype, cast_weights=True)
    session = ChatSession(Engine(gpt, tokenizer), settings, seed)
    if prompt is None:
        _converse(session)
    else:
        _answer_once(session, prompt)


class Piece(NamedTuple):
    """A few characters of an answer."""

    type: str
    """text, python or python_output."""
    text: str
    """Whole characters only."""


@dataclass
class ChatSession:
    """A conversation with a model, kept within the model's context."""

    engine: Engine
    settings: dict[str, Any]
    """temperature, top_k and max_new_tokens."""
    seed: int = 0
    messages: list[dict[str, Any]] = field(default_factory=list)
    """The conversation so far."""
    num_dropped_turns: int = 0
    """Oldest turns that the last message pushed out of the context."""
    was_cut: bool = False
    """Whether the last answer ran out of tokens before the model ended it."""
    _num_answers: int = 0

    def ask(self, text: str) -> Generator[Piece, None, None]:
        """Answer a message piece by piece; the conversation then holds both, or what was said of the answer so far.

        Args:
            text: The user's message.

        Raises:
            UserError: If the message alone is longer than the context, or a setting is impossible; it is forgotten then.
        """
        self.messages.append({"role": "user", "content": text})
        token_ids: list[int] = []
        try:
            steps = self.engine.stream(self._prompt(), seed=self.seed + self._num_answers, **self.settings)
        except BaseException:  # Ctrl-C too: a message without an answer would break the order of the turns
            self.messages.pop()
            raise
        self._num_answers += 1
        try:
            self.was_cut = True
            yield from self._pieces(steps, token_ids)
        finally:  # also when the reader stops listening: what was said stays said
            content = parse_completion(self.engine.tokenizer, token_ids)
            self.messages.append({"role": "assistant", "content": content})

    def clear(self) -> None:
        """Forget the conversation."""
        self.messages.clear()

    def _prompt(self) -> list[int]:
        """The conversation as token ids, its oldest turns dropped until there is room for an answer."""
        context = self.engine.model.config.sequence_len
        # a quarter of the context is kept free for the answer: less would end it in the middle of a sentence
        limit = context - min(self.settings["max_new_tokens"], context // 4)
        self.num_dropped_turns = 0
        prompt = render_for_completion(self.engine.tokenizer, {"messages": self.messages})
        while len(prompt) > limit and len(self.messages) > 2:
            del self.messages[:2]
            self.num_dropped_turns += 1
            prompt = render_for_completion(self.engine.tokenizer, {"messages": self.messages})
        if len(prompt) > context:
            raise UserError(f"the message has {len(prompt)} tokens and the model's context is {context}; shorten it")
        return prompt

    def _pieces(self, steps: Iterator[tuple[list[int], list[int]]], token_ids: list[int]) -> Iterator[Piece]:
        special = self.engine.tokenizer.special_ids
        opens = {special[PYTHON_START]: "python", special[OUTPUT_START]: "python_output"}
        closes = (special[PYTHON_END], special[OUTPUT_END])
        kind, decoder = "text", self.engine.tokenizer.stream_decoder()
        for (token_id,), _ in steps:
            if token_id in self.engine.end_ids:
                self.was_cut = False
                break
            token_ids.append(token_id)
            switches = token_id in opens or token_id in closes
            if text := decoder.finish() if switches else decoder.push(token_id):
                yield Piece(kind, text)
            if switches:
                kind = opens.get(token_id, "text")
        if text := decoder.finish():
            yield Piece(kind, text)


def _answer_once(session: ChatSession, prompt: str) -> None:
    for piece in session.ask(prompt):
        if piece.type == "text":
            _write(piece.text)
    _write("\n")
    _report_cut(session)


def _converse(session: ChatSession) -> None:
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print(HELP)
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (line editing and history in input())
    while True:
        try:
            text = input("\n> " if is_terminal else "").strip()
        except (EOFError, KeyboardInterrupt):
            _write("\n" if is_terminal else "")
            return
        if text == "/quit":
            return
        if text == "/clear":
            session.clear()
            _note("conversation forgotten")
        elif text.startswith("/"):
            _note(HELP)
        elif text:
            _answer_aloud(session, text)


def _answer_aloud(session: ChatSession, text: str) -> None:
    """One answer of a conversation, calculator calls shown dimly; mistakes are told and the conversation goes on."""
    dim, plain = (_DIM, _PLAIN) if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else ("", "")
    brackets = {"text": ("", ""), "python": (f"{dim}[", f"]{plain}"), "python_output": (f"{dim}[= ", f"]{plain}")}
    kind = "text"
    pieces = session.ask(text)
    try:
        for piece in pieces:
            if piece.type != kind:
                _write(brackets[kind][1] + brackets[piece.type][0], is_model_text=False)
                kind = piece.type
            if session.num_dropped_turns:
                _note(f"the conversation outgrew the context: {session.num_dropped_turns} oldest turn(s) dropped")
                session.num_dropped_turns = 0
            _write(piece.text)
    except KeyboardInterrupt:
        session.was_cut = False
    except UserError as error:
        _note(f"error: {error}")
        return
    finally:
        pieces.close()
    _write(brackets[kind][1] + "\n", is_model_text=False)
    _report_cut(session)


def _report_cut(session: ChatSession) -> None:
    if session.was_cut:
        _note("the answer was cut: --max_new_tokens or the model's context was used up")


def _write(text: str, is_model_text: bool = True) -> None:
    """Show text at once; characters that the terminal's encoding lacks become question marks."""
    text = text.translate(_CONTROL) if is_model_text and sys.stdout.isatty() else text
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def _note(text: str) -> None:
    print(f"({text})", file=sys.stderr, flush=True)
