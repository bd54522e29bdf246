import hashlib
import json
import pickle
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_lit.common.errors import UserError
from nanochat_lit.tokenizer import SPECIAL_TOKENS, Tokenizer

# What sentencepiece and text tools treat specially, next to ordinary text.
NASTY = [
    *SPECIAL_TOKENS,
    *"\0\t\n\r\u2581\u2585\ufeff\ufffd\ufffe\U0010ffff\u00a0\u3000\u200d\u0301\u2028\x85\x1c\ue000",
    *[
        "\r\n",
        "  ",
        " ",
        "\u2581\u2581",
        " \u2581 ",
        "<0x41>",
        "<unk>",
        "<s>",
        "</s>",
        "é",
        "e\u0301",
        "🇫🇷",
        "👩‍👩‍👧",
        "the",
        "12345",
    ],
]
nasty_text = st.lists(st.one_of(st.sampled_from(NASTY), st.text(max_size=8)), max_size=12).map("".join)
no_surrogates = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60)
any_text = st.one_of(no_surrogates, nasty_text.filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text)))


@settings(max_examples=3000, deadline=None)
@given(text=any_text)
def test_every_string_comes_back_with_exact_byte_counts(tokenizer, text):
    token_ids = tokenizer.encode(text)
    assert tokenizer.decode(token_ids) == text
    assert sum(len(tokenizer.bytes_of(token_id)) for token_id in token_ids) == len(text.encode("utf-8"))
    assert all(9 < token_id < tokenizer.vocab_size for token_id in token_ids)  # no control token, never unknown


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(any_text, max_size=6), num_threads=st.integers(1, 3))
def test_batch_equals_one_by_one(tokenizer, texts, num_threads):
    assert tokenizer.encode_batch(texts, num_threads) == [tokenizer.encode(text) for text in texts]


@settings(max_examples=1000, deadline=None)
@given(data=st.data())
def test_stream_decoder_equals_decode_for_any_ids(tokenizer, data):
    token_ids = data.draw(st.lists(st.one_of(st.integers(0, 499), st.integers(10, 265)), max_size=40))
    decoder = tokenizer.stream_decoder()
    streamed = "".join(decoder.push(token_id) for token_id in token_ids) + decoder.finish()
    raw = b"".join(tokenizer.bytes_of(token_id) for token_id in token_ids)
    assert streamed == tokenizer.decode(token_ids) == raw.decode("utf-8", "replace")


@settings(max_examples=500, deadline=None)
@given(text=any_text)
def test_streaming_whole_text_never_emits_half_a_character(tokenizer, text):
    decoder = tokenizer.stream_decoder()
    seen = ""
    for token_id in tokenizer.encode(text):
        seen += decoder.push(token_id)
        assert text.startswith(seen)  # a half character would show as U+FFFD
    assert seen + decoder.finish() == text


def test_token_bytes_tensor(tokenizer):
    table = tokenizer.token_bytes()
    assert table.shape == (500,)
    assert table[:10].sum() == 0
    text = "a \u2581 café\0\t東京 12345"
    assert int(table[tokenizer.encode(text)].sum()) == len(text.encode())


def test_control_tokens_are_the_first_ids_and_text_cannot_forge_them(tokenizer):
    assert tokenizer.special_ids == {token: index for index, token in enumerate(SPECIAL_TOKENS)}
    assert tokenizer.bos_id == 0
    for token in SPECIAL_TOKENS:
        assert tokenizer.decode(tokenizer.encode(token)) == token
        assert not set(tokenizer.encode(f"x{token} {token}")) & set(range(10))
    assert tokenizer.encode("the", prepend_bos=True) == [0, *tokenizer.encode("the")]
    assert tokenizer.decode([0, *tokenizer.encode("the"), 4, 9]) == "the"


def test_words_spaces_and_newlines_become_pieces_and_digits_stay_single(tokenizer, documents):
    assert len(tokenizer.encode(" the mountain")) <= 3
    assert len(tokenizer.encode("\n\n")) == 1
    digits = tokenizer.encode("1234")
    assert [tokenizer.decode([token_id]) for token_id in digits] == list("1234")
    text = " ".join(documents(50, seed=9))
    assert len(text.encode()) / len(tokenizer.encode(text)) > 3.0


def test_partial_characters_decode_to_replacement_characters(tokenizer):
    euro = tokenizer.encode("€")
    assert len(euro) == 3
    assert tokenizer.decode(euro[:2]) == "\ufffd"
    assert tokenizer.decode(euro[1:]) == "\ufffd\ufffd"
    decoder = tokenizer.stream_decoder()
    assert [decoder.push(token_id) for token_id in euro[:2]] == ["", ""]
    assert decoder.finish() == "\ufffd"


@pytest.mark.parametrize("text", ["ab\ud800c", "\u2581b\udfffc"])
def test_lone_surrogate_is_named_with_its_position(tokenizer, text):
    with pytest.raises(UserError, match="character 2"):
        tokenizer.encode(text)
    with pytest.raises(UserError, match=r"text 1 .*character 2"):
        tokenizer.encode_batch(["fine", text])


@pytest.mark.parametrize("token_id", [-1, 500, 10**9])
def test_ids_outside_the_vocabulary_are_refused(tokenizer, token_id):
    with pytest.raises(UserError, match=f"token id {token_id} is outside the vocabulary of 500"):
        tokenizer.decode([token_id])


def test_save_load_and_pickle_keep_everything(tokenizer, tmp_path, documents):
    tokenizer.save(tmp_path / "new" / "folder")
    loaded = Tokenizer.load(tmp_path / "new" / "folder")
    unpickled = pickle.loads(pickle.dumps(tokenizer))
    text = documents(1, seed=3)[0]
    for other in (loaded, unpickled):
        assert other.encode(text) == tokenizer.encode(text)
        assert other.fingerprint == tokenizer.fingerprint
    saved = (tmp_path / "new" / "folder" / "tokenizer.model").read_bytes()
    assert hashlib.sha256(saved).hexdigest() == tokenizer.fingerprint
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "tokenizer.json",
        "tokenizer.model",
    ]


def test_damaged_or_foreign_files_are_refused(tokenizer, tmp_path):
    def saved():
        tokenizer.save(tmp_path)
        return tmp_path / "tokenizer.model", tmp_path / "tokenizer.json"

    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path / "nothing")
    model, description = saved()
    model.write_bytes(model.read_bytes()[:-5])
    with pytest.raises(UserError, match="sha256"):
        Tokenizer.load(tmp_path)
    model, description = saved()
    description.write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)
    model, description = saved()
    description.write_text(json.dumps({**json.loads(description.read_text()), "format_version": 99}))
    with pytest.raises(UserError, match="format_version 99"):
        Tokenizer.load(tmp_path)
    model, description = saved()
    description.write_text(json.dumps({**json.loads(description.read_text()), "special_ids": {}}))
    with pytest.raises(UserError, match="control tokens"):
        Tokenizer.load(tmp_path)
    model, description = saved()
    model.write_bytes(b"not a model")
    fields = {**json.loads(description.read_text()), "fingerprint": hashlib.sha256(b"not a model").hexdigest()}
    description.write_text(json.dumps(fields))
    with pytest.raises(UserError, match="not a tokenizer of nanochat-lit"):
        Tokenizer.load(tmp_path)


def test_control_tokens_that_the_chat_template_lacks_are_refused(monkeypatch):
    monkeypatch.setattr("nanochat_lit.tokenizer.training.SPECIAL_TOKENS", (*SPECIAL_TOKENS, "<|tool_start|>"))
    with pytest.raises(
        UserError, match=r"the chat template lacks the control token <\|tool_start\|> \(id \d+\); train one"
    ):
        Tokenizer.train(["the cat sat on the mat"] * 20, "auto")


def test_long_random_text_round_trips_whole(tokenizer):
    rng = random.Random(0)
    text = "".join(
        chr(rng.choice([rng.randrange(32, 127), rng.randrange(0x2500, 0x2600), rng.randrange(0x10FFFF - 100)]))
        for _ in range(20_000)
    )
    text = "".join(character for character in text if not "\ud800" <= character <= "\udfff")
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_space_that_the_corpus_does_not_have_is_a_space():
    tokenizer = Tokenizer.train(["今日は天気がいいですね。" * 3, "東京は日本の首都です。"] * 20, vocab_size=300)
    for text in ("東京 は ▁ 日本", " ", "a b"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.encode_batch([text, "東京"]) == [tokenizer.encode(text), tokenizer.encode("東京")]
