"""nanochat's kind of tokenizer: the ids are tiktoken's own, and every string comes back."""

import json
import pickle
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_lit.common.errors import UserError
from nanochat_lit.tokenizer import SPECIAL_TOKENS, Tokenizer, render_conversation
from nanochat_lit.tokenizer.tiktoken_bpe import TiktokenTokenizer


@pytest.fixture(scope="module")
def nanochat(nanochat_encoding):
    return TiktokenTokenizer(
        nanochat_encoding._pat_str, nanochat_encoding._mergeable_ranks, nanochat_encoding._special_tokens
    )


@settings(deadline=None, max_examples=300)
@given(text=st.text(alphabet=st.characters(codec="utf-8")))
def test_ids_are_those_of_tiktoken_and_text_comes_back(nanochat, nanochat_encoding, text):
    token_ids = nanochat.encode(text)
    assert token_ids == nanochat_encoding.encode_ordinary(text)
    assert nanochat.decode(token_ids) == text
    assert int(nanochat.token_bytes()[token_ids].sum()) == len(text.encode())
    decoder = nanochat.stream_decoder()
    assert "".join(map(decoder.push, token_ids)) + decoder.finish() == text


def test_control_tokens(nanochat):
    assert list(nanochat.special_ids) == list(SPECIAL_TOKENS)
    assert nanochat.special_ids["<|bos|>"] == nanochat.bos_id == 320 - 9
    assert nanochat.bos_id not in nanochat.encode("<|bos|> is text")
    assert nanochat.encode("x", prepend_bos=True) == [nanochat.bos_id, *nanochat.encode("x")]
    assert nanochat.decode(list(nanochat.special_ids.values())) == ""


def test_batch_and_pickle(nanochat):
    texts = ["the cat", "", "naïve 日本語", "<|bos|>"]
    again = pickle.loads(pickle.dumps(nanochat))
    assert again.encode_batch(texts, num_threads=2) == [nanochat.encode(text) for text in texts]
    for encode in (nanochat.encode, lambda text: nanochat.encode_batch([text])):
        with pytest.raises(UserError, match=r"U\+D800"):
            encode("\ud800")


def test_conversations(nanochat):
    s, encode = nanochat.special_ids, nanochat.encode
    parts = [{"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}, {"type": "text", "text": "2."}]
    conversation = [{"role": "user", "content": "sum"}, {"role": "assistant", "content": parts}]
    token_ids, mask = render_conversation(
        nanochat, {"messages": [{"role": "system", "content": "be brief"}, *conversation]}
    )
    assert token_ids == [
        *(s["<|bos|>"], s["<|user_start|>"], *encode("be brief\n\nsum"), s["<|user_end|>"], s["<|assistant_start|>"]),
        *(s["<|python_start|>"], *encode("1+1"), s["<|python_end|>"]),
        *(s["<|output_start|>"], *encode("2"), s["<|output_end|>"], *encode("2."), s["<|assistant_end|>"]),
    ]
    assert len(mask) == len(token_ids)


def test_files_are_plain_text_and_say_which_kind_they_are(nanochat, tmp_path):
    nanochat.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer.tiktoken"]
    assert (tmp_path / "tokenizer.tiktoken").read_text("ascii").splitlines()[0] == "AA== 0"
    loaded = Tokenizer.load(tmp_path)
    assert isinstance(loaded, TiktokenTokenizer)
    assert loaded.fingerprint == nanochat.fingerprint
    assert loaded.encode("the cat 12") == nanochat.encode("the cat 12")


def test_damaged_files_are_refused(nanochat, tmp_path):
    nanochat.save(tmp_path)
    ranks, description = tmp_path / "tokenizer.tiktoken", tmp_path / "tokenizer.json"
    whole, fields = ranks.read_bytes(), json.loads(description.read_text())
    for content, message in (
        (whole[:-9], "whole numbers|0, 1, 2|base64"),
        (whole.replace(b"AA==", b"!!!!"), "base64"),
        (whole + b"YWJj 5\n", "0, 1, 2"),
        (b"", "256 bytes"),
    ):
        ranks.write_bytes(content)
        with pytest.raises(UserError, match=message):
            Tokenizer.load(tmp_path)
    ranks.write_bytes(whole)
    for change, message in (
        ({"pattern": r"\p{L}+|."}, "loses text"),
        ({"pattern": "((("}, "is invalid"),
        ({"pattern": fields["pattern"] + "|x"}, "damaged, or from another"),
        ({"pattern": None}, "no pattern"),
        ({"special_ids": {}}, "lacks the control tokens"),
        ({"special_ids": {**fields["special_ids"], "<|bos|>": "0"}}, "integers"),
        ({"type": "unigram"}, "'unigram'"),
    ):
        description.write_text(json.dumps({**fields, **change}))
        with pytest.raises(UserError, match=message):
            Tokenizer.load(tmp_path)
    description.write_text(json.dumps(fields))
    ranks.unlink()
    with pytest.raises(UserError, match=r"no tokenizer\.tiktoken"):
        Tokenizer.load(tmp_path)


def test_without_tiktoken_the_message_says_what_to_install(nanochat, tmp_path, monkeypatch):
    nanochat.save(tmp_path)
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(UserError, match=r"pip install '\.\[tiktoken\]'"):
        Tokenizer.load(tmp_path)
