"""Tool calls within generation: forced tokens and the end of a sequence.

After <|python_end|> the text since <|python_start|> is passed to the calculator (or another tool) and

    <|output_start|> result <|output_end|>

is forced into the sequence. An expression that cannot be evaluated forces nothing, as in nanochat, and the model
continues (error texts do not occur in training).
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from nanochat_lit.engine.calculator import calculate
from nanochat_lit.tokenizer import Tokenizer
from nanochat_lit.tokenizer.special_tokens import ASSISTANT_END, OUTPUT_END, OUTPUT_START, PYTHON_END, PYTHON_START

Tool = Callable[[str], str | None]
"""Returns the result of a call, or None to force nothing."""


@dataclass(slots=True)
class ToolRow:
    """Tool state of one sequence: pass every emitted token to `observe`, and query `next_forced`."""

    tokenizer: Tokenizer
    tool: Tool = calculate
    """Tool to call; the calculator by default."""
    has_ended: bool = False
    """Whether <|assistant_end|> or <|bos|> was emitted."""
    _forced: deque[int] = field(default_factory=deque)
    _expression_ids: list[int] | None = None
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
        if token_id not in self._own_ids:  # the common case
            if self._expression_ids is not None:
                self._expression_ids.append(token_id)
            return
        special = self._special
        if token_id in (special[ASSISTANT_END], self.tokenizer.bos_id):
            self.has_ended = True
        elif token_id == special[PYTHON_START]:
            self._expression_ids = []
        else:
            if self._expression_ids is not None:
                self._call(self.tokenizer.decode(self._expression_ids))
            self._expression_ids = None

    def _call(self, expression: str) -> None:
        result = self.tool(expression)
        if result is not None:
            special = self._special
            self._forced.append(special[OUTPUT_START])
            self._forced.extend(self.tokenizer.encode(result))
            self._forced.append(special[OUTPUT_END])
