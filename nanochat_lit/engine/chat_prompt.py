"""A conversation as the token ids that a model with a limited context reads."""

from collections.abc import Sequence
from typing import Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.tokenizer import Tokenizer, render_for_completion


def fit_chat_prompt(
    tokenizer: Tokenizer, messages: Sequence[dict[str, Any]], context: int, max_new_tokens: int
) -> tuple[list[int], int]:
    """The prompt for the next answer, with as many of the last turns as leave room for it.

    Room is as many tokens as are asked for, but at most a quarter of the context: answers are mostly much shorter than what
    is allowed, and the past is worth more than room that stays empty. The system message is never dropped.

    Args:
        tokenizer: The model's.
        messages: A conversation that ends with the user's message.
        context: Positions that the model has.
        max_new_tokens: Longest answer.

    Returns:
        Token ids, and the number of turns dropped from the beginning (a turn is a question and its answer).

    Raises:
        UserError: If the last message alone is too long, or the conversation malformed.
    """
    system = [message for message in messages[:1] if message["role"] == "system"]
    turns = messages[len(system) :]
    limit = context - min(max_new_tokens, context // 4)

    def render(start: int) -> list[int]:
        return render_for_completion(tokenizer, {"messages": [*system, *turns[start:]]})

    start = max(len(turns) - 1, 0)
    prompt = render(start)
    if len(prompt) > context:
        what = "the message with the system prompt" if system else "the message"
        raise UserError(f"{what} has {len(prompt)} tokens and the model's context is {context}; shorten it")
    while start >= 2 and len(longer := render(start - 2)) <= limit:
        start, prompt = start - 2, longer
    return prompt, start // 2
