import pytest

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.engine_chat import fit_chat_prompt
from nanochat_lit.tokenizer import Tokenizer, render_for_completion

SYSTEM = {"role": "system", "content": "be kind"}


def dialogue(num_turns: int) -> list[dict]:
    messages = []
    for turn in range(num_turns):
        messages += [
            {"role": "user", "content": f"question {turn}"},
            {"role": "assistant", "content": f"answer {turn}"},
        ]
    return [*messages, {"role": "user", "content": "and now?"}]


@pytest.mark.parametrize("system", [[], [SYSTEM]])
@pytest.mark.parametrize(("context", "max_new_tokens"), [(120, 256), (120, 4), (200, 10), (4096, 256)])
def test_as_many_of_the_last_turns_as_fit(
    tokenizer: Tokenizer, system: list, context: int, max_new_tokens: int
) -> None:
    """Against the definition: of all suffixes of whole turns, the longest that leaves room."""
    turns = dialogue(12)
    limit = context - min(max_new_tokens, context // 4)
    suffixes = {n: render_for_completion(tokenizer, {"messages": [*system, *turns[2 * n :]]}) for n in range(13)}
    expected = min((n for n, prompt in suffixes.items() if len(prompt) <= limit), default=12)
    prompt, num_dropped = fit_chat_prompt(tokenizer, [*system, *turns], context, max_new_tokens)
    assert num_dropped == expected
    assert prompt == suffixes[expected]


def test_a_message_may_take_the_room_of_its_answer_but_no_more(tokenizer: Tokenizer) -> None:
    message = [{"role": "user", "content": "word " * 30}]
    size = len(render_for_completion(tokenizer, {"messages": message}))
    prompt, num_dropped = fit_chat_prompt(tokenizer, [*dialogue(2)[:-1], *message], size, 256)
    assert (len(prompt), num_dropped) == (size, 2)
    with pytest.raises(UserError, match=f"the message has {size} tokens, but the model's context is {size - 1}"):
        fit_chat_prompt(tokenizer, message, size - 1, 256)
    with pytest.raises(UserError, match="the message with the system prompt"):
        fit_chat_prompt(tokenizer, [SYSTEM, *message], size, 256)
