"""The fast tokenizer in an exported folder gives our ids, for texts and for conversations."""

import random
import string

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from packaging.version import Version

from nanochat_lit.engine.hf_tokenizer import PARTING_MARK, write_hf_tokenizer
from nanochat_lit.tokenizer import SPECIAL_TOKENS, Tokenizer, render_conversation, render_for_completion
from nanochat_lit.tokenizer.tiktoken_bpe import TiktokenTokenizer

transformers = pytest.importorskip("transformers", reason="needs the hf extra")

RUNS = [" " * n + "=" * n + "\n" * n + "ab" * n + "aab" * n + "-=-" * n + "aba" * n for n in range(1, 40)]
"""Overlapping pieces of equal text, where the order of merges could differ."""


def kinds(nanochat_encoding, tokenizer):
    rng = random.Random(5)
    yield "small", tokenizer
    yield "runs", Tokenizer.train(RUNS * 3, "auto")
    yield "two letters", Tokenizer.train(["".join(rng.choices("ab", k=40)) for _ in range(200)], "auto")
    yield "no space", Tokenizer.train(["今日は天気がいいですね。", "東京は日本の首都です。"] * 20, "auto")
    encoding = nanochat_encoding
    yield "nanochat", TiktokenTokenizer(encoding._pat_str, encoding._mergeable_ranks, encoding._special_tokens)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, nanochat_encoding, tokenizer):
    """By name, a tokenizer of ours and what transformers makes of its files."""
    found = {}
    for name, ours in kinds(nanochat_encoding, tokenizer):
        folder = tmp_path_factory.mktemp("tokenizer")
        write_hf_tokenizer(folder, ours, 2048)
        found[name] = ours, transformers.AutoTokenizer.from_pretrained(folder)
    return found


def encode(theirs, text):
    return theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def check(pairs, text):
    for name, (ours, theirs) in pairs.items():
        expected = ours.encode(text)
        assert encode(theirs, text) == expected, name
        assert theirs.decode(expected) == text, name


@settings(deadline=None, max_examples=150)
@given(text=st.text(alphabet=st.characters(codec="utf-8")))
def test_any_text(pairs, text):
    check(pairs, text)


@settings(deadline=None, max_examples=200)
@given(text=st.text(alphabet="ab =-\n\t_1▁.é", max_size=80))
def test_runs_and_overlaps(pairs, text):
    check(pairs, text)


def test_long_texts(pairs):
    rng = random.Random(1)
    for alphabet in ("ab", "ab ", "a=- \n", string.printable, "日本 東京.\r\n"):
        for length in (500, 5000):
            check(pairs, "".join(rng.choices(alphabet, k=length)))
    check(pairs, "it's we'll 12345 6\r\n\r\n  x <0x41> <unk> <s> \u2585 \u00a0\u3000 e\u0301" + "".join(SPECIAL_TOKENS))


def test_special_tokens(pairs):
    for ours, theirs in pairs.values():
        assert len(theirs) == ours.vocab_size
        assert {name: theirs.convert_tokens_to_ids(name) for name in SPECIAL_TOKENS} == ours.special_ids
        assert (theirs.bos_token_id, theirs.eos_token) == (ours.bos_id, "<|assistant_end|>")
        assert theirs("a b")["input_ids"] == ours.encode("a b", prepend_bos=True)
        ids = [ours.bos_id, *ours.encode("the cat"), ours.special_ids["<|user_end|>"]]
        assert theirs.decode(ids, skip_special_tokens=True) == "the cat"
        assert theirs("<|bos|>x", add_special_tokens=False)["input_ids"] == [ours.bos_id, *ours.encode("x")]
        assert theirs.padding_side == "left"
        for index in range(ours.vocab_size):  # every token that is whole characters, the unknown one included
            if (piece := ours.bytes_of(index).decode("utf-8", "replace")).count(
                "\ufffd"
            ) == 0 and index not in theirs.all_special_ids:
                assert theirs.decode([index]) == piece


TEXTS = st.one_of(
    st.text(alphabet=st.characters(codec="utf-8"), max_size=20),
    st.lists(st.sampled_from([*SPECIAL_TOKENS, "<|", "|>", "<", "▁", " ", "\n", "a", PARTING_MARK[0]])).map("".join),
)
PARTS = st.lists(
    st.fixed_dictionaries({"type": st.sampled_from(["text", "python", "python_output"]), "text": TEXTS}), max_size=4
)


@st.composite
def conversations(draw):
    messages = [{"role": "system", "content": draw(TEXTS)}] if draw(st.booleans()) else []
    for turn in range(draw(st.integers(1, 4))):
        content = draw(st.one_of(TEXTS, PARTS)) if turn % 2 else draw(TEXTS)
        messages.append({"role": ("user", "assistant")[turn % 2], "content": content})
    return {"messages": messages}


@settings(deadline=None, max_examples=150)
@example(conversation={"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "\x80"}]})
@given(conversation=conversations())
def test_conversations_have_our_ids(pairs, conversation):
    for name, (ours, theirs) in pairs.items():
        token_ids, loss_mask = render_conversation(ours, conversation)
        rendered = theirs.apply_chat_template(
            conversation["messages"], return_dict=True, return_assistant_tokens_mask=True
        )
        assert rendered["input_ids"] == token_ids, name
        if Version(transformers.__version__) >= Version("5.24"):  # 5.20 counts only the first token of a character
            assert rendered["assistant_masks"] == loss_mask, name
        if conversation["messages"][-1]["role"] == "user":
            prompt = theirs.apply_chat_template(conversation["messages"], add_generation_prompt=True, return_dict=True)
            assert prompt["input_ids"] == render_for_completion(ours, conversation)


def test_content_in_parts(pairs):
    ours, theirs = pairs["small"]

    def parts(*texts):
        return [{"type": "text", "text": text} for text in texts]

    messages = [
        {"role": "system", "content": parts("Be ", "brief.")},
        {"role": "user", "content": parts("What is ", "1 + 1?")},
        {"role": "assistant", "content": parts("2")},
    ]
    plain = [{**message, "content": "".join(part["text"] for part in message["content"])} for message in messages]
    expected, _ = render_conversation(ours, {"messages": plain})
    assert theirs.apply_chat_template(messages, return_dict=True)["input_ids"] == expected
    messages[1]["content"][0]["type"] = "image"
    with pytest.raises(Exception, match="must be text"):
        theirs.apply_chat_template(messages)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "assistant", "content": "hi"}],
        [{"role": "user", "content": "hi"}, {"role": "user", "content": "hi"}],
        [{"role": "system", "content": "hi"}],
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": [{"type": "image", "text": "x"}]}],
    ],
)
def test_malformed_conversations_are_refused(pairs, messages):
    with pytest.raises(Exception, match=r"in turn|user message is missing|a part must be"):
        pairs["small"][1].apply_chat_template(messages)
