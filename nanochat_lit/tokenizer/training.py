"""Trains a sentencepiece BPE model on a stream of documents with bounded memory.

sentencepiece keeps every sentence in memory until it has counted the words. Memory is therefore bounded by the number
of characters (`max_chars`), not by `input_sentence_size`, which ignores the length of sentences. A character takes 4
bytes, and 85 bytes more in words that occur only once. Text without spaces (Chinese, Japanese, Thai) consists of such
words and is capped at MAX_UNSPACED_CHARS. Two billion characters take up to 13 GB and, at 3 million characters per
second on two cores, 15 minutes.
"""

import io
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, Literal

from nanochat_lit.common.errors import UserError, check_at_least_one
from nanochat_lit.tokenizer.special_tokens import SPECIAL_TOKENS

NUM_BYTES = 256
UNK_ID = len(SPECIAL_TOKENS)
"""sentencepiece requires an unknown token; with all 256 bytes in the vocabulary, text never produces it."""
FIRST_BYTE_ID = UNK_ID + 1
MIN_VOCAB_SIZE = FIRST_BYTE_ID + NUM_BYTES + 1
"""Minimum vocabulary: control tokens, unknown token, 256 bytes and one character."""
MAX_VOCAB_SIZE = 2**20
CHARS_PER_TOKEN = 1000
LARGEST_AUTO_VOCAB_SIZE = 32768
MAX_UNSPACED_CHARS = 50_000_000
"""Maximum number of characters in runs without spaces; later runs are removed from their documents."""
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]{5,}|\S{33,}")
"""Runs of scripts that are written without spaces, and overlong words."""
_SENTENCE_LENGTH_LIMIT = 2**30


class VocabSizeError(UserError):
    """The vocabulary does not fit the corpus; `nearest` is the closest size that does."""

    def __init__(self, message: str, nearest: int) -> None:
        super().__init__(message)
        self.nearest = nearest


def auto_vocab_size(num_chars: int, depth: int | None = None) -> int:
    """Return the vocabulary size for a corpus and a model, a power of two.

    It is 4096 up to depth 2, 8192 up to depth 7, 16384 up to depth 11, and 32768 otherwise or without a depth. It is
    then halved until the corpus has at least 1000 characters per token; the minimum is 512. A lower bound of the number
    of characters suffices above 33 million.
    """
    vocab_size = LARGEST_AUTO_VOCAB_SIZE
    if depth is not None and depth < 12:
        vocab_size = 16384 if depth >= 8 else 8192 if depth >= 3 else 4096
    while vocab_size > 512 and vocab_size * CHARS_PER_TOKEN > num_chars:
        vocab_size //= 2
    return vocab_size


def train_model(
    texts: Iterable[str],
    vocab_size: int | Literal["auto"],
    *,
    max_chars: int,
    doc_cap: int,
    num_threads: int,
    depth: int | None,
    split_scripts: bool | Literal["auto"],
) -> bytes:
    """Train on at most `max_chars` characters of `texts` and return the serialized sentencepiece model."""
    if vocab_size != "auto":
        check_vocab_size(vocab_size)
    check_at_least_one(max_chars=max_chars, doc_cap=doc_cap, num_threads=num_threads)
    if isinstance(texts, str):
        raise UserError("texts is one string; give an iterable of documents, for example [text]")
    if split_scripts == "auto":
        # At depth 4 it improves bits per byte by 0.03 in the same training time; deeper models were not compared.
        split_scripts = depth is not None and depth < 8
    sentences = _sample(texts, max_chars, doc_cap)
    options: dict[str, Any] = {
        "num_threads": num_threads,
        "split_by_unicode_script": split_scripts,
        "max_sentence_length": min(_SENTENCE_LENGTH_LIMIT, max(2**20, 4 * doc_cap + 1)),
    }
    if vocab_size != "auto":
        return _train_once(sentences, vocab_size, options)
    # Buffers only as many characters as the rule depends on; a shorter corpus can be read twice.
    held: list[str] = []
    num_chars = 0
    for text in sentences:
        held.append(text)
        num_chars += len(text)
        if num_chars >= LARGEST_AUTO_VOCAB_SIZE * CHARS_PER_TOKEN:
            break
    wanted = auto_vocab_size(num_chars, depth)
    try:
        return _train_once(chain(held, sentences), wanted, options)
    except VocabSizeError as error:
        if num_chars >= LARGEST_AUTO_VOCAB_SIZE * CHARS_PER_TOKEN:
            raise
        return _train_once(iter(held), error.nearest, options)


def check_vocab_size(vocab_size: object) -> None:
    """Raise UserError unless `vocab_size` is a valid integer."""
    if isinstance(vocab_size, bool) or not isinstance(vocab_size, int):
        raise UserError(f"vocab_size is {vocab_size!r}; use 'auto' or an integer")
    if not MIN_VOCAB_SIZE <= vocab_size <= MAX_VOCAB_SIZE:
        raise UserError(
            f"vocab_size {vocab_size} is out of range: it must be between {MIN_VOCAB_SIZE} ({NUM_BYTES} bytes, "
            f"{FIRST_BYTE_ID} control tokens and an alphabet) and {MAX_VOCAB_SIZE}; use 'auto' or a power of two"
        )


def _sample(texts: Iterable[str], max_chars: int, doc_cap: int) -> Iterator[str]:
    """Yield documents in order, truncated to `doc_cap` characters, until `max_chars` is reached."""
    left, unspaced_left = max_chars, MAX_UNSPACED_CHARS
    for index, document in enumerate(texts):
        text = document[: min(doc_cap, left)]
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            message = f"document {index} has a lone surrogate at character {error.start}, which UTF-8 cannot encode"
            raise UserError(f"{message}; remove it or replace it by U+FFFD") from None
        left -= len(text)
        # sentencepiece skips a whole sentence that contains U+2585, its marker of unknown text.
        text = text.replace("\u2585", " ")
        if unspaced_left > 0:
            unspaced_left -= sum(map(len, _UNSPACED.findall(text)))
        else:
            text = _UNSPACED.sub(" ", text)
        if text:
            yield text
        if left <= 0:
            return


def _train_once(sentences: Iterator[str], vocab_size: int, options: dict[str, Any]) -> bytes:
    """Train with one vocabulary size; `options` are additional sentencepiece options."""
    import sentencepiece

    failure: list[BaseException] = []
    num_sentences = 0

    def guarded() -> Iterator[str]:
        # sentencepiece converts exceptions of the iterator to RuntimeError and loses their type.
        nonlocal num_sentences
        try:
            for sentence in sentences:
                num_sentences += 1
                yield sentence
        except BaseException as error:
            failure.append(error)
            raise

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=guarded(),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            control_symbols=list(SPECIAL_TOKENS),
            unk_id=UNK_ID,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            minloglevel=3,
            **options,
        )
    except RuntimeError as error:
        if failure:
            raise failure[0] from None
        if num_sentences == 0:
            raise UserError("the corpus for the tokenizer is empty; give at least one document with text") from None
        raise _explain(str(error), vocab_size) from None
    return model.getvalue()


def _explain(message: str, vocab_size: int) -> UserError:
    too_high = re.search(r"set it to a value <= (\d+)", message)
    if too_high:
        limit = int(too_high.group(1))
        return VocabSizeError(
            f"vocab_size {vocab_size} is too large for this corpus: it has words for at most {limit} tokens; "
            f"use vocab_size <= {limit}, 'auto', or more text",
            nearest=limit,
        )
    too_small = re.search(r"smaller than required_chars\. \d+ vs (\d+)", message)
    if too_small:
        limit = int(too_small.group(1))
        return VocabSizeError(
            f"vocab_size {vocab_size} is too small for this corpus: {NUM_BYTES} bytes, {FIRST_BYTE_ID} control tokens "
            f"and its alphabet need {limit}; use vocab_size >= {limit} or 'auto'",
            nearest=limit,
        )
    return UserError(f"sentencepiece could not train the tokenizer: {message.strip()}")
