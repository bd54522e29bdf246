from collections.abc import Callable

from nanochat_lit.engine.engine import Engine
from nanochat_lit.evaluation.samples import answer_messages, complete_texts, readable
from nanochat_lit.model import GPT
from nanochat_lit.tokenizer import Tokenizer


def test_one_completion_per_prompt(random_model: Callable[..., GPT], tokenizer: Tokenizer) -> None:
    engine = Engine(random_model(), tokenizer)
    for complete in (complete_texts, answer_messages):
        together = complete(engine, ["the cat", "hello", "12"], max_new_tokens=8)
        assert together == [complete(engine, [prompt], max_new_tokens=8)[0] for prompt in ["the cat", "hello", "12"]]
        assert all(isinstance(text, str) for text in together)


def test_calls_are_shown_in_brackets() -> None:
    parts = [
        {"type": "text", "text": "So "},
        {"type": "python", "text": "1+2"},
        {"type": "python_output", "text": "3"},
        {"type": "text", "text": "."},
    ]
    assert readable(parts) == "So [1+2 = 3]."
    assert readable(parts[:2]) == "So [1+2]"
    assert readable([parts[1], parts[3]]) == "[1+2]."
    assert readable(parts[2:3]) == "[= 3]"
    assert readable([]) == ""
