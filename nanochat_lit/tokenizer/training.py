"""Train a sentencepiece BPE model from a stream of documents, with bounded memory.

sentencepiece keeps every sentence it is given in memory until it has counted the words, so the bound is the number of
characters that are let through (`max_chars`), not its own `input_sentence_size`, which bounds sentences of any length.
That costs 4 bytes a character, and words that occur only once cost 85 bytes a character more, which is what text
without spaces (Chinese, Japanese, Thai) is made of: of such runs only MAX_UNSPACED_CHARS are let through. Two billion
characters so take up to 13 GB and, at 3 million characters a second on two cores, a quarter of an hour.
"""

import io
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, Literal

from nanochat_lit.common.errors import UserError
from nanochat_lit.tokenizer.special_tokens import SPECIAL_TOKENS

NUM_BYTES = 256
UNK_ID = len(SPECIAL_TOKENS)
"""sentencepiece insists on an unknown token; with all 256 bytes in the vocabulary text can never produce it."""
FIRST_BYTE_ID = UNK_ID + 1
MIN_VOCAB_SIZE = FIRST_BYTE_ID + NUM_BYTES + 1
"""Control tokens, the unknown token, 256 bytes and at least one character."""
MAX_VOCAB_SIZE = 2**20
CHARS_PER_TOKEN = 1000
LARGEST_AUTO_VOCAB_SIZE = 32768
MAX_UNSPACED_CHARS = 50_000_000
"""Characters of runs without a space to learn from; later ones are left out of their documents."""
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]{5,}|\S{33,}")
"""Scripts that are written without spaces, and words that are none."""
_SENTENCE_LENGTH_LIMIT = 2**30


class VocabSizeError(UserError):
    """The vocabulary does not fit the corpus; `nearest` is the closest size that does."""

    def __init__(self, message: str, nearest: int) -> None:
        super().__init__(message)
        self.nearest = nearest


def auto_vocab_size(num_chars: int, depth: int | None = None) -> int:
    """Vocabulary size for a corpus and a model, always a power of two.

    The rule: 4096 up to depth 2, 8192 up to depth 7, 16384 up to depth 11, 32768 from depth 12 up or when no depth is
    given; then halved until there are at least 1000 characters of corpus for every token, but not below 512.

    Args:
        num_chars: Characters of the corpus (any larger number once it is above 33 million).
        depth: Layers of the model; None when the tokenizer is not made for one model.
    """
    vocab_size = LARGEST_AUTO_VOCAB_SIZE
    if depth is not None and depth < 12:
        vocab_size = 16384 if depth >= 8 else 8192 if depth >= 3 else 4096
    while vocab_size > 512 and vocab_size * CHARS_PER_TOKEN > num_chars:
        vocab_size //= 2
    return vocab_size


def auto_split_scripts(depth: int | None) -> bool:
    """Whether tokens end where the script does: for small models, up to depth 7; not where no depth is given.

    At depth 4 it is worth 0.03 bits per byte in the same time. Deeper models were not compared: they split as nanochat does.
    """
    return depth is not None and depth < 8


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
    """Train on at most `max_chars` characters of `texts` and return the serialized sentencepiece model.

    Raises:
        UserError: If the corpus is empty, or the vocabulary too small or too large for it.
    """
    if vocab_size != "auto":
        check_vocab_size(vocab_size)
    for name, value in (("max_chars", max_chars), ("doc_cap", doc_cap), ("num_threads", num_threads)):
        if value < 1:
            raise UserError(f"{name} is {value}, but must be at least 1")
    if isinstance(texts, str):
        raise UserError("texts is one string; give an iterable of documents, for example [text]")
    sentences = _sample(texts, max_chars, doc_cap)
    options: dict[str, Any] = {
        "num_threads": num_threads,
        "split_by_unicode_script": auto_split_scripts(depth) if split_scripts == "auto" else split_scripts,
        "max_sentence_length": min(_SENTENCE_LENGTH_LIMIT, max(2**20, 4 * doc_cap + 1)),
    }
    if vocab_size != "auto":
        return _train_once(sentences, vocab_size, options)
    # Only as much is held back as the rule can notice; a corpus that ends before can be gone through twice.
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
    """Raise UserError unless `vocab_size` is an integer that some corpus could be trained to."""
    if isinstance(vocab_size, bool) or not isinstance(vocab_size, int):
        raise UserError(f"vocab_size is {vocab_size!r}; use 'auto' or a whole number")
    if not MIN_VOCAB_SIZE <= vocab_size <= MAX_VOCAB_SIZE:
        raise UserError(
            f"vocab_size {vocab_size} is not possible: it must lie between {MIN_VOCAB_SIZE} ({NUM_BYTES} bytes, "
            f"{FIRST_BYTE_ID} control tokens and an alphabet) and {MAX_VOCAB_SIZE}; use 'auto' or a power of two"
        )


def _sample(texts: Iterable[str], max_chars: int, doc_cap: int) -> Iterator[str]:
    """Documents in order, cut at `doc_cap` characters, until the budget is used."""
    left, unspaced_left = max_chars, MAX_UNSPACED_CHARS
    for index, document in enumerate(texts):
        text = document[: min(doc_cap, left)]
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            message = f"document {index} has a lone surrogate at character {error.start}, which UTF-8 cannot hold"
            raise UserError(f"{message}; remove it or replace it by U+FFFD") from None
        left -= len(text)
        # sentencepiece skips a whole sentence that holds its own mark for unknown text, U+2585.
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
    """Train to one size; options are those of sentencepiece that are not always the same."""
    import sentencepiece

    failure: list[BaseException] = []
    num_sentences = 0

    def guarded() -> Iterator[str]:
        # An exception that passes through sentencepiece comes out as a RuntimeError without its type.
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
            raise UserError("the corpus for the tokenizer holds no text; give at least one document") from None
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
