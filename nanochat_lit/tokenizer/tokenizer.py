"""Tokenizer interface: each id represents a fixed byte string, which is empty for control tokens.

Two kinds exist: the package's own (sentencepiece_bpe.py) and nanochat's (tiktoken_bpe.py). A field of tokenizer.json
determines the kind.
"""

import codecs
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import atomic_write, read_json, whole_folder, write_json
from nanochat_lit.tokenizer.special_tokens import BOS
from nanochat_lit.tokenizer.training import train_model

if TYPE_CHECKING:
    import torch

JSON_FILE = "tokenizer.json"
MODEL_FILES = ("tokenizer.model", "tokenizer.tiktoken")
"""Vocabulary file by kind of tokenizer."""

FORMAT = "nanochat-lit tokenizer"
FORMAT_VERSION = 1
OWN_KIND = "sentencepiece-bpe"

_HOMES = {
    OWN_KIND: "nanochat_lit.tokenizer.sentencepiece_bpe:SentencePieceTokenizer",
    "tiktoken-bpe": "nanochat_lit.tokenizer.tiktoken_bpe:TiktokenTokenizer",
}
"""Module by kind; imported on first use, so that each kind needs only its own library."""


class Tokenizer(ABC):
    """Lossless conversion between text and token ids; create one with `train` or `load`.

    Args:
        token_bytes: Byte string of each id; empty for control tokens.
        special_ids: Ids of the nine control tokens by name.
    """

    kind: str
    """Its name in tokenizer.json."""
    vocabulary_file: str
    """Name of the file with the vocabulary."""

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
        """Train a tokenizer; the same texts and options always produce the same tokenizer.

        Args:
            texts: Documents, read once and in order, up to max_chars.
            vocab_size: Number of tokens, including nine control tokens and 256 bytes, or 'auto'; see `auto_vocab_size`.
            max_chars: Number of characters to train on. Bounds the memory: 4 bytes per character, plus at most 4.3 GB
                for text without spaces, which is capped at 50 million characters.
            doc_cap: Maximum number of characters per document, so that a few long documents do not dominate.
            num_threads: Threads; None is 2. The vocabulary does not depend on it, but the fingerprint does, because
                sentencepiece stores the number in the model file.
            depth: Number of layers of the model, used by 'auto'.
            split_scripts: Split tokens at changes of script, treating punctuation as a script: "word" and "," are two
                tokens. Text then has more tokens, but small models still learn faster. 'auto' is true up to depth 7.

        Raises:
            UserError: If the text is empty, or the vocabulary is too small or too large for it.
        """
        model = train_model(
            texts, vocab_size, max_chars=max_chars, doc_cap=doc_cap, num_threads=num_threads or 2, depth=depth,
            split_scripts=split_scripts,
        )  # fmt: skip
        return _kind(OWN_KIND)(model)

    @staticmethod
    def load(folder: str | Path) -> "Tokenizer":
        """Load a tokenizer of either kind that `save` wrote.

        Raises:
            UserError: If a file is missing, the files do not match, or the format is unknown.
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
            raise UserError(f"'{path}' has type {kind!r}; this version reads {', '.join(_HOMES)}")
        found = _kind(kind)
        vocabulary = path.with_name(found.vocabulary_file)
        if not vocabulary.is_file():
            raise UserError(f"no {vocabulary.name} in '{folder}'; copy both files of the tokenizer")
        tokenizer = found.from_file(vocabulary, description)
        if tokenizer.fingerprint != description.get("fingerprint"):
            raise UserError(
                f"'{vocabulary}' is not the file that {JSON_FILE} describes: damaged, or from another tokenizer; "
                "copy both again"
            )
        return tokenizer

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer's folder atomically; replaces an older tokenizer, but nothing else (UserError)."""
        with whole_folder(folder, {JSON_FILE, *MODEL_FILES}, "a tokenizer") as temporary:
            self.write_files(temporary)

    def write_files(self, folder: Path) -> None:
        """Write the vocabulary file and tokenizer.json into an existing folder."""
        with atomic_write(folder / self.vocabulary_file, "wb") as file:
            file.write(self.vocabulary())
        description = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "type": self.kind,
            "vocab_size": self.vocab_size,
            **self.details(),
            "fingerprint": self.fingerprint,
        }
        write_json(folder / JSON_FILE, description)

    @classmethod
    @abstractmethod
    def from_file(cls, path: Path, description: dict[str, Any]) -> "Tokenizer":
        """Load a vocabulary file, given the contents of tokenizer.json; raises UserError if they do not match."""

    @abstractmethod
    def vocabulary(self) -> bytes:
        """Return the contents of the vocabulary file."""

    def details(self) -> dict[str, Any]:
        """Return the control tokens, and other entries of tokenizer.json."""
        return {"special_ids": self.special_ids}

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Return a SHA-256 in hexadecimal; equal for equal tokenizers."""

    @abstractmethod
    def encode(self, text: str, prepend_bos: bool = False) -> list[int]:
        """Return the token ids of `text`; names of control tokens in it are ordinary text.

        Raises:
            UserError: If the text contains a lone surrogate, which UTF-8 cannot encode.
        """

    @abstractmethod
    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """Return the token ids of each text, without bos, using `num_threads` native threads."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens, including control tokens."""
        return len(self._bytes)

    @property
    def bos_id(self) -> int:
        """Id at the beginning of every document and conversation."""
        return self._special_ids[BOS]

    @property
    def special_ids(self) -> dict[str, int]:
        """Ids of the nine control tokens by name, such as '<|bos|>'."""
        return dict(self._special_ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of `token_ids`; control tokens are dropped, and invalid UTF-8 becomes U+FFFD.

        Raises:
            UserError: If an id is outside the vocabulary.
        """
        return b"".join([self.bytes_of(token_id) for token_id in token_ids]).decode("utf-8", "replace")

    def bytes_of(self, token_id: int) -> bytes:
        """Return the bytes of one token; a character may be split over several tokens.

        Raises:
            UserError: If the id is outside the vocabulary.
        """
        if 0 <= token_id < len(self._bytes):
            return self._bytes[token_id]
        raise UserError(
            f"token id {token_id} is outside the vocabulary of {self.vocab_size} (0 to {self.vocab_size - 1})"
        )

    def stream_decoder(self) -> "StreamDecoder":
        """Return an incremental decoder."""
        return StreamDecoder(self)

    def token_bytes(self) -> "torch.Tensor":
        """Return the number of bytes of each token, (vocab_size,) int32; 0 for control tokens.

        The sum over `encode(text)` is the length of the text in UTF-8, for every text.
        """
        import torch  # imported here because encoding and training do not need torch, which takes a second to import

        return torch.tensor([len(piece) for piece in self._bytes], dtype=torch.int32)


class StreamDecoder:
    """Decodes token by token, buffering the bytes of an incomplete character.

    The concatenated results of `push` and `finish` equal `Tokenizer.decode` of all tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Return the text that this token completes, possibly empty."""
        return self._decoder.decode(self._tokenizer.bytes_of(token_id))

    def finish(self) -> str:
        """Return U+FFFD for an incomplete character, else an empty string, and reset the decoder."""
        rest = self._decoder.decode(b"", True)
        self._decoder.reset()
        return rest


def utf8(text: str, index: int | None = None) -> bytes:
    """Encode a text as UTF-8; the UserError of a lone surrogate names its index, if it is in a batch."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        where = "the text" if index is None else f"text {index} of the batch"
        raise UserError(
            f"{where} has a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start}, which is not "
            "valid Unicode; remove it or replace it by U+FFFD"
        ) from None


def _kind(name: str) -> Any:
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(import_module(module), attribute)
