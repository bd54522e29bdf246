"""What every tokenizer does, whatever its vocabulary: each id stands for a fixed string of bytes, control tokens for none.

Two kinds exist: our own (sentencepiece_bpe.py) and nanochat's (tiktoken_bpe.py). Which one a folder holds is a field of
its tokenizer.json.
"""

import codecs
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import read_json, whole_folder
from nanochat_lit.tokenizer.special_tokens import BOS

if TYPE_CHECKING:
    import torch

JSON_FILE = "tokenizer.json"
MODEL_FILES = ("tokenizer.model", "tokenizer.tiktoken")
"""By kind of tokenizer; a folder has one of them."""

FORMAT = "nanochat-lit tokenizer"
FORMAT_VERSION = 1
OWN_KIND = "sentencepiece-bpe"

_HOMES = {
    OWN_KIND: "nanochat_lit.tokenizer.sentencepiece_bpe:SentencePieceTokenizer",
    "tiktoken-bpe": "nanochat_lit.tokenizer.tiktoken_bpe:TiktokenTokenizer",
}
"""Imported on first use, so that each kind needs its own library only."""


class Tokenizer(ABC):
    """Text to token ids and back, without loss; make one with `train` or `load`.

    Args:
        token_bytes: What each id stands for, in bytes; empty for control tokens.
        special_ids: Ids of the nine control tokens by name.
    """

    def __init__(self, token_bytes: list[bytes], special_ids: dict[str, int]) -> None:
        self._bytes = token_bytes
        self._special_ids = special_ids

    @staticmethod
    def train(
        texts: Iterable[str],
        vocab_size: int | Literal["auto"] = 8192,
        *,
        max_chars: int = 2_000_000_000,
        doc_cap: int = 10_000,
        num_threads: int | None = None,
        depth: int | None = None,
        split_scripts: bool | Literal["auto"] = "auto",
    ) -> "Tokenizer":
        """Train a vocabulary; the same texts and options always give the same tokenizer.

        Args:
            texts: Documents, read once and in order, as far as the budget goes.
            vocab_size: Number of tokens, the nine control tokens and 256 bytes included, or 'auto': 4096 up to depth
                2, 8192 up to depth 7, 16384 up to depth 11, else 32768, halved until there are 1000 characters of
                text per token, but at least 512 (see `auto_vocab_size`).
            max_chars: Characters of text to learn from. They are all held in memory, so this is the memory bound: 4 bytes
                a character, and at most 4.3 GB more for text without spaces, of which 50 million characters are used.
            doc_cap: Characters of one document to learn from; the rest of it is left out, so that a few long
                documents do not decide the vocabulary.
            num_threads: Threads; None for 2. The vocabulary is the same for any number, the fingerprint is not, because
                sentencepiece notes the number in the model file.
            depth: Layers of the model, used by 'auto' alone.
            split_scripts: No token goes beyond a change of script, where punctuation is a script of its own: "word" and
                "," are two tokens. Text then has more tokens, and a small model still learns more from it in the same
                time; 'auto' is true up to depth 7.

        Raises:
            UserError: If the text is empty, or the vocabulary is too small or too large for it.
        """
        return _kind(OWN_KIND).from_texts(
            texts, vocab_size, max_chars=max_chars, doc_cap=doc_cap, num_threads=num_threads or 2, depth=depth,
            split_scripts=split_scripts,
        )  # fmt: skip

    @staticmethod
    def load(folder: str | Path) -> "Tokenizer":
        """Read the tokenizer that `save` wrote, of whichever kind.

        Raises:
            UserError: If a file is missing, the files do not belong together, or they are of a foreign format.
        """
        path = Path(folder) / JSON_FILE
        if not path.is_file():
            raise UserError(
                f"no {JSON_FILE} in '{folder}'; give a folder that `nanochat-lit tokenizer train` or a run wrote"
            )
        description = read_json(path)
        version = description.get("format_version") if isinstance(description, dict) else None
        if version != FORMAT_VERSION:
            raise UserError(
                f"'{path}' has format_version {version!r}, but this version reads {FORMAT_VERSION}; "
                "train the tokenizer again"
            )
        kind = description.get("type")
        if kind not in _HOMES:
            raise UserError(f"'{path}' is of the type {kind!r}; this version reads {', '.join(_HOMES)}")
        return _kind(kind).from_folder(Path(folder), description)

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer's folder; it appears whole or not at all, and replaces an older tokenizer.

        Args:
            folder: Where; missing parents are made.

        Raises:
            UserError: If it is a file, or holds anything but a tokenizer.
        """
        with whole_folder(folder, {JSON_FILE, *MODEL_FILES}, "a tokenizer") as temporary:
            self.write_files(temporary)

    @abstractmethod
    def write_files(self, folder: Path) -> None:
        """Write the tokenizer's files into a folder that exists."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A sha256 in hexadecimal: equal for equal tokenizers."""

    @abstractmethod
    def encode(self, text: str, prepend_bos: bool = False) -> list[int]:
        """Token ids of `text`; names of control tokens in it are ordinary text.

        Raises:
            UserError: If the text holds a lone surrogate, which UTF-8 cannot express.
        """

    @abstractmethod
    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """Token ids of each text, without bos; `num_threads` native threads share the work."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens, control tokens included."""
        return len(self._bytes)

    @property
    def bos_id(self) -> int:
        """The id that begins every document and conversation."""
        return self._special_ids[BOS]

    @property
    def special_ids(self) -> dict[str, int]:
        """Ids of the nine control tokens by name, such as '<|bos|>'."""
        return dict(self._special_ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of `token_ids`; control tokens are dropped, bytes that are not UTF-8 become U+FFFD.

        Raises:
            UserError: If an id lies outside the vocabulary.
        """
        return b"".join([self.bytes_of(token_id) for token_id in token_ids]).decode("utf-8", "replace")

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes one token stands for; a character may be spread over several tokens.

        Raises:
            UserError: If the id lies outside the vocabulary.
        """
        if 0 <= token_id < len(self._bytes):
            return self._bytes[token_id]
        raise UserError(
            f"token id {token_id} is outside the vocabulary of {self.vocab_size} (0 to {self.vocab_size - 1})"
        )

    def stream_decoder(self) -> "StreamDecoder":
        """A decoder that takes one token at a time."""
        return StreamDecoder(self)

    def token_bytes(self) -> "torch.Tensor":
        """Bytes of text each token stands for, (vocab_size,) int32; 0 for control tokens.

        The sum over `encode(text)` is the length of the text in UTF-8, for every text.
        """
        import torch  # not at the top: encoding and training need no torch, and it takes a second to import

        return torch.tensor([len(piece) for piece in self._bytes], dtype=torch.int32)


class StreamDecoder:
    """Decodes token by token and holds back the bytes of an unfinished character.

    What `push` and `finish` return, joined, is what `Tokenizer.decode` gives for all the tokens at once.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Text that this token completes, possibly empty."""
        return self._decoder.decode(self._tokenizer.bytes_of(token_id))

    def finish(self) -> str:
        """U+FFFD for a character that was never completed, else nothing; the decoder can be used anew."""
        rest = self._decoder.decode(b"", True)
        self._decoder.reset()
        return rest


def utf8(text: str, index: int | None = None) -> bytes:
    """The bytes of a text.

    Args:
        text: What to encode.
        index: Its place in a batch, for the message; None if it is alone.

    Raises:
        UserError: If it holds a lone surrogate.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        where = "the text" if index is None else f"text {index} of the batch"
        raise UserError(
            f"{where} has a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start}, which is not "
            "valid Unicode; remove it or replace it by U+FFFD"
        ) from None


def _kind(name: str) -> type:
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(import_module(module), attribute)
