"""Tool calls within generation: forced tokens and the end of a sequence.

After <|python_end|> the text since <|python_start|> is passed to the calculator (or another tool) and

    <|output_start|> result <|output_end|>

is forced into the sequence. An expression that cannot be evaluated forces nothing, as in nanochat, and the model
continues (error texts do not occur in training).

With functions (engine/functions.py), a turn that calls some does not end the sequence: the user's turn with the results
and the start of the assistant's next one are forced.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from nanochat_lit.common.tool_format import render_results
from nanochat_lit.engine.calculator import calculate
from nanochat_lit.engine.functions import Functions
from nanochat_lit.tokenizer import Tokenizer, parse_completion
from nanochat_lit.tokenizer.special_tokens import (
    ASSISTANT_END,
    ASSISTANT_START,
    OUTPUT_END,
    OUTPUT_START,
    PYTHON_END,
    PYTHON_START,
    USER_END,
    USER_START,
)

Tool = Callable[[str], str | None]
"""Returns the result of a call, or None to force nothing."""


@dataclass(slots=True)
class ToolRow:
    """Tool state of one sequence: pass every emitted token to `observe`, and query `next_forced`."""

    tokenizer: Tokenizer
    tool: Tool = calculate
    """Tool to call; the calculator by default."""
    functions: Functions | None = None
    """Functions that the model may call."""
    _forced: deque[int] = field(default_factory=deque)
    """Tokens that must follow: at first a given start of the answer, whose calls are not run again."""
    has_ended: bool = False
    """Whether <|assistant_end|> or <|bos|> was emitted."""
    _expression_ids: list[int] | None = None
    _turn_ids: list[int] = field(default_factory=list)
    """With functions, tokens of the assistant's current turn."""
    _num_calls: int = 0
    _special: dict[str, int] = field(init=False)
    _own_ids: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        self._special = special = self.tokenizer.special_ids
        self._own_ids = frozenset(
            (special[ASSISTANT_END], self.tokenizer.bos_id, special[PYTHON_START], special[PYTHON_END])
        )

    def next_forced(self) -> int | None:
        """Return the token that must be emitted next, or None to sample one."""
        return self._forced.popleft() if self._forced else None

    def observe(self, token_id: int) -> None:
        """Process an emitted token, forced or sampled."""
        if self.functions is not None:
            self._follow_turn(token_id)
        if token_id not in self._own_ids:  # the common case
            if self._expression_ids is not None:
                self._expression_ids.append(token_id)
            return
        special = self._special
        if token_id in (special[ASSISTANT_END], self.tokenizer.bos_id):
            self.has_ended = not self._forced  # no results follow
        elif token_id == special[PYTHON_START]:
            self._expression_ids = []
        else:
            if self._expression_ids is not None and not self._forced:
                self._call(self.tokenizer.decode(self._expression_ids))
            self._expression_ids = None

    def _follow_turn(self, token_id: int) -> None:
        """Collect the tokens of a turn; at its end, run the calls in it and force their results."""
        special = self._special
        if token_id == special[ASSISTANT_START]:
            self._turn_ids = []  # what was forced before it, results, is not the model's to call from
        elif token_id != special[ASSISTANT_END]:
            self._turn_ids.append(token_id)
        elif self.functions is not None and not self._forced:
            parts = parse_completion(self.tokenizer, self._turn_ids)
            text = "".join(part["text"] for part in parts if part["type"] == "text")
            results = self.functions.results(text, self.functions.max_calls - self._num_calls)
            self._num_calls += len(results)
            if results:
                self._expression_ids = None
                reply = self.tokenizer.encode(render_results(results))
                self._forced.extend((special[USER_START], *reply, special[USER_END], special[ASSISTANT_START]))

    def _call(self, expression: str) -> None:
        result = self.tool(expression)
        if result is not None:
            special = self._special
            self._forced.append(special[OUTPUT_START])
            self._forced.extend(self.tokenizer.encode(result))
            self._forced.append(special[OUTPUT_END])
