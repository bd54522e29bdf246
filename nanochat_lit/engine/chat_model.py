"""What a conversation talks to: an engine in this process, or a server elsewhere."""

from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol

from nanochat_lit.engine.answer_text import Piece
from nanochat_lit.engine.sampling_params import SamplingParams

Message = dict[str, Any]
"""{"role": "system" | "user" | "assistant", "content": text, or parts if it is the assistant's}, as in tokenizer/chat.py."""


class Answer:
    """One answer while it is being said. Its pieces are iterated over once; `stop` ends it early.

    Args:
        num_dropped_turns: Oldest turns that the model does not see, because they do not fit into its context.
        stop: Ends the answer, from any thread and more than once; the iteration then ends too.
    """

    def __init__(self, *, num_dropped_turns: int = 0, stop: Callable[[], None]) -> None:
        self.num_dropped_turns = num_dropped_turns
        self.num_tokens: int | None = 0
        """Tokens so far; None if it is not known."""
        self.elapsed_s = 0.0
        """From the question to the newest token, whenever that was listened to."""
        self.finish_reason: str | None = None
        """"stop" when the model ended it, "length" when tokens ran out; None while it goes on or when it was stopped."""
        self.stop = stop
        self.pieces: Generator[Piece, None, None]
        """The answer piece by piece, each as soon as it is certain; set by who makes the answer."""


class ChatModel(Protocol):
    """Answers conversations, several at once if they come from several threads."""

    def answer(self, messages: Sequence[Message], settings: SamplingParams) -> Answer:
        """Begin the answer to a conversation whose last message is the user's.

        Raises:
            UserError: If it cannot be answered: too long, impossible settings, no server, too busy.
        """
        ...
