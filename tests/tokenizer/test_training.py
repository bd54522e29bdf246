import itertools
import re

import pytest

from nanochat_lit.common.errors import UserError
from nanochat_lit.tokenizer import Tokenizer, auto_vocab_size
from nanochat_lit.tokenizer.training import MIN_VOCAB_SIZE


def test_training_is_deterministic_whatever_the_threads(documents):
    texts = documents(100)
    first = Tokenizer.train(iter(texts), vocab_size=400)
    assert first.fingerprint == Tokenizer.train(texts, vocab_size=400).fingerprint
    assert first.vocab_size == 400
    other = Tokenizer.train(texts, vocab_size=400, num_threads=1)
    assert [other.bytes_of(index) for index in range(400)] == [first.bytes_of(index) for index in range(400)]


@pytest.mark.parametrize(
    ("split_scripts", "depth", "is_split"),
    [(True, 24, True), (False, 4, False), ("auto", 7, True), ("auto", 8, False), ("auto", None, False)],
)
def test_tokens_stop_at_changes_of_script_if_wanted(documents, split_scripts, depth, is_split):
    texts = [*documents(100), *(f"{word}東京{word}." for word in ("the", "boat", "stars") for _ in range(50))]
    tokenizer = Tokenizer.train(texts, vocab_size=500, split_scripts=split_scripts, depth=depth)
    tokens = [tokenizer.bytes_of(index).decode("utf-8", "replace") for index in range(266, 500)]
    across = [token for token in tokens if re.search(r"[a-z][.,?!]|[.,?!] ?[a-z]|[a-z]東|京[a-z]", token)]
    assert bool(across) is not is_split, across
    assert any(re.fullmatch(r" ?[a-z]{4,}", token) for token in tokens)


def test_budget_stops_an_endless_stream_and_long_documents_are_cut(documents):
    read = 0

    def endless():
        nonlocal read
        for text in itertools.cycle(documents(50)):
            read += 1
            yield text

    Tokenizer.train(endless(), vocab_size=400, max_chars=20_000)
    assert 20_000 / 800 < read < 400
    # With a cap of 30 the tail is never seen, so its letters need bytes.
    tokenizer = Tokenizer.train(["the small boat and the small boat" + "ЖЖЖ" * 100] * 3, vocab_size="auto", doc_cap=30)
    assert len(tokenizer.encode("Ж")) == 2
    assert len(Tokenizer.train(["boat" + "Ж" * 100] * 3, vocab_size="auto").encode("Ж")) == 1


def test_documents_with_reserved_characters_still_count():
    tokenizer = Tokenizer.train(["Ω\u2585 \u2581Ω\0 Ω\n\n"] * 5, vocab_size="auto")
    assert len(tokenizer.encode("Ω")) == 1


@pytest.mark.parametrize(("vocab_size", "message"), [
    (8192, r"vocab_size 8192 is too large for this corpus.*<= \d+"),
    (MIN_VOCAB_SIZE, r"vocab_size 267 is too small for this corpus.*>= \d+"),
    (100, r"vocab_size 100 is out of range"),
    (2**30, "out of range"),
    (True, "vocab_size is True"),
    (512.0, "vocab_size is 512.0"),
])  # fmt: skip
def test_impossible_vocabularies_name_the_limit(vocab_size, message, capfd):
    with pytest.raises(UserError, match=message):
        Tokenizer.train(["hello world and some more"] * 5, vocab_size=vocab_size)
    assert capfd.readouterr() == ("", "")  # sentencepiece's own log is silent


@pytest.mark.parametrize("vocab_size", [8192, MIN_VOCAB_SIZE])
def test_the_proposed_size_works(vocab_size):
    texts = ["hello world and some more"] * 5
    with pytest.raises(UserError) as caught:
        Tokenizer.train(texts, vocab_size=vocab_size)
    assert Tokenizer.train(texts, vocab_size=caught.value.nearest).vocab_size == caught.value.nearest


def test_corpus_errors():
    with pytest.raises(UserError, match="is empty"):
        Tokenizer.train([])
    with pytest.raises(UserError, match="is empty"):
        Tokenizer.train(["", ""], vocab_size="auto")
    with pytest.raises(UserError, match="one string"):
        Tokenizer.train("hello")
    with pytest.raises(UserError, match="document 1 has a lone surrogate at character 1"):
        Tokenizer.train(["a", "b\ud800"])
    with pytest.raises(UserError, match="max_chars is 0"):
        Tokenizer.train(["a"], max_chars=0)

    def broken():
        yield "text"
        raise FileNotFoundError("shard")

    with pytest.raises(FileNotFoundError, match="shard"):
        Tokenizer.train(broken())


def test_auto_vocab_size_rule():
    plenty = 10**12
    assert [auto_vocab_size(plenty, depth) for depth in (1, 2, 3, 4, 7, 8, 11, 12, 24)] == [
        4096, 4096, 8192, 8192, 8192, 16384, 16384, 32768, 32768,
    ]  # fmt: skip
    assert auto_vocab_size(plenty) == 32768
    assert auto_vocab_size(32_768_000, 12) == 32768
    assert auto_vocab_size(32_767_999, 12) == 16384
    assert auto_vocab_size(1_500_000, 4) == 1024
    assert auto_vocab_size(0, 4) == 512


def test_auto_fits_corpora_that_are_tiny_or_have_large_alphabets():
    assert Tokenizer.train(["hello"], vocab_size="auto").vocab_size < 512
    many = Tokenizer.train(["".join(map(chr, range(0x4E00, 0x4E00 + 1000)))], vocab_size="auto")
    assert many.vocab_size > 1000
