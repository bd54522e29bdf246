import pytest

from nanochat_lit.common.errors import UserError
from nanochat_lit.tokenizer import (
    parse_completion,
    render_conversation,
    render_for_completion,
    validate_conversation,
)

BOS, USER, USER_END, ASSISTANT, ASSISTANT_END, PYTHON, PYTHON_END, OUTPUT, OUTPUT_END = range(9)
PARTS = [
    {"type": "text", "text": "Let me see. "},
    {"type": "python", "text": "6*7"},
    {"type": "python_output", "text": "42"},
    {"type": "text", "text": "It is 42."},
]
CONVERSATION = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "6*7?"},
        {"role": "assistant", "content": PARTS},
        {"role": "user", "content": "<|assistant_end|>"},
        {"role": "assistant", "content": "Right."},
    ],
    "source": "test",
}


def expected(tokenizer):
    """The sequence of the specification written out by hand, as (ids, trained) runs."""
    e = tokenizer.encode
    return [
        ([BOS, USER, *e("Be brief.\n\n6*7?"), USER_END, ASSISTANT], 0),
        ([*e("Let me see. "), PYTHON, *e("6*7"), PYTHON_END], 1),
        ([OUTPUT, *e("42"), OUTPUT_END], 0),
        ([*e("It is 42."), ASSISTANT_END], 1),
        ([USER, *e("<|assistant_end|>"), USER_END, ASSISTANT], 0),
        ([*e("Right."), ASSISTANT_END], 1),
    ]


def test_rendering_equals_the_hand_written_sequence(tokenizer):
    token_ids, loss_mask = render_conversation(tokenizer, CONVERSATION)
    assert token_ids == [token_id for ids, _ in expected(tokenizer) for token_id in ids]
    assert loss_mask == [trained for ids, trained in expected(tokenizer) for _ in ids]
    assert token_ids.count(ASSISTANT_END) == 2  # the user's "<|assistant_end|>" is text


def test_cut_keeps_ids_and_mask_aligned(tokenizer):
    token_ids, loss_mask = render_conversation(tokenizer, CONVERSATION)
    assert render_conversation(tokenizer, CONVERSATION, max_tokens=10) == (token_ids[:10], loss_mask[:10])


def test_prompt_drops_the_last_answer(tokenizer):
    runs = expected(tokenizer)
    prompt = [token_id for ids, _ in runs[:-1] for token_id in ids]
    assert render_for_completion(tokenizer, CONVERSATION) == prompt
    assert render_for_completion(tokenizer, {"messages": CONVERSATION["messages"][:-1]}) == prompt
    assert CONVERSATION["messages"][-1]["role"] == "assistant"  # the caller's conversation is left alone


def test_parsing_a_completion_inverts_rendering(tokenizer):
    prompt = render_for_completion(tokenizer, {"messages": CONVERSATION["messages"][:3]})
    token_ids, _ = render_conversation(tokenizer, {"messages": CONVERSATION["messages"][:3]})
    completion = token_ids[len(prompt) :]
    assert parse_completion(tokenizer, completion) == PARTS
    assert parse_completion(tokenizer, completion[:-1]) == PARTS
    assert parse_completion(tokenizer, [*completion, *tokenizer.encode("ignored")]) == PARTS


def test_parsing_survives_what_a_model_may_write(tokenizer):
    e = tokenizer.encode
    assert parse_completion(tokenizer, []) == []
    assert parse_completion(tokenizer, [PYTHON, *e("1+")]) == [{"type": "python", "text": "1+"}]
    assert parse_completion(
        tokenizer, [OUTPUT_END, *e("a"), PYTHON, PYTHON, PYTHON_END, ASSISTANT, *e("b"), BOS, *e("c")]
    ) == [
        {"type": "text", "text": "a"},
        {"type": "python", "text": ""},
        {"type": "python", "text": ""},
        {"type": "text", "text": "b"},
    ]


def user(content):
    return {"role": "user", "content": content}


@pytest.mark.parametrize(("conversation", "message"), [
    ([], "expected"),
    ({"messages": "hi"}, "expected"),
    ({"messages": []}, "no user message"),
    ({"messages": [{"role": "system", "content": "x"}]}, "no user message"),
    ({"messages": [user("a"), user("b")]}, "message 1 has role 'user', expected 'assistant'"),
    ({"messages": [{"role": "assistant", "content": "a"}]}, "message 0 has role 'assistant', expected 'user'"),
    ({"messages": [user("a"), {"role": "system", "content": "a"}]}, "expected 'assistant'"),
    ({"messages": [user(["a"])]}, "must be a string"),
    ({"messages": [user(None)]}, "must be a string"),
    ({"messages": [{"role": "user"}]}, "message 0 must be"),
    ({"messages": ["hi"]}, "message 0 must be"),
    ({"messages": [user("a"), {"role": "assistant", "content": 3}]}, "string or a list of parts"),
    ({"messages": [user("a"), {"role": "assistant", "content": [{"type": "image", "text": ""}]}]}, "part 0 must be"),
    ({"messages": [user("a"), {"role": "assistant", "content": [{"type": "text"}]}]}, "part 0 must be"),
])  # fmt: skip
def test_malformed_conversations_are_named(conversation, message):
    with pytest.raises(UserError, match=message) as caught:
        validate_conversation(conversation, where="train.jsonl:7")
    assert str(caught.value).startswith("train.jsonl:7: ")
