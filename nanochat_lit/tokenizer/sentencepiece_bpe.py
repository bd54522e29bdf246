"""Byte-fallback BPE on sentencepiece that gives back every string unchanged.

Layout of the ids, the same for every vocabulary size:

    0 .. 8      the nine control tokens, in the order of SPECIAL_TOKENS (bos is 0); no text encodes to them
    9           sentencepiece's unknown token: it must exist, but nothing encodes to it, because of the bytes
    10 .. 265   the 256 bytes, for everything that has no piece of its own
    266 ..      learned pieces: merges by rank, then single characters

Every id stands for a fixed string of bytes (none for 0 to 9), and decoding joins them; so lengths in bytes are exact
for every text, and decoding any sequence of ids is defined. sentencepiece writes a space as U+2581 and would read a
real U+2581 as a space: text is cut at that character, which is emitted as its three bytes.
"""

import codecs
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import sentencepiece

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import atomic_write, read_json, write_json
from nanochat_lit.tokenizer.special_tokens import BOS, SPECIAL_TOKENS
from nanochat_lit.tokenizer.training import FIRST_BYTE_ID, NUM_BYTES, UNK_ID, train_model

if TYPE_CHECKING:
    import torch

MODEL_FILE = "tokenizer.model"
JSON_FILE = "tokenizer.json"
FORMAT_VERSION = 1
_SPACE_MARK = "\u2581"
_SPACE_MARK_IDS = [FIRST_BYTE_ID + byte for byte in _SPACE_MARK.encode("utf-8")]


class Tokenizer:
    """A trained tokenizer; make one with `train` or `load`."""

    def __init__(self, model: bytes) -> None:
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
            self._bytes = _piece_bytes(self._processor)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"this is not a tokenizer of nanochat-lit: {error}; train one or give its folder") from None

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int | Literal["auto"] = 8192,
        *,
        max_chars: int = 2_000_000_000,
        doc_cap: int = 10_000,
        num_threads: int | None = None,
        depth: int | None = None,
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

        Raises:
            UserError: If there is no text, or the vocabulary is too small or too large for it.
        """
        model = train_model(
            texts, vocab_size, max_chars=max_chars, doc_cap=doc_cap, num_threads=num_threads or 2, depth=depth
        )
        return cls(model)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.model and tokenizer.json into `folder`, which is made if needed."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / MODEL_FILE, "wb") as file:
            file.write(self._model)
        description = {
            "format": "nanochat-lit tokenizer",
            "format_version": FORMAT_VERSION,
            "type": "sentencepiece-bpe",
            "vocab_size": self.vocab_size,
            "special_ids": self.special_ids,
            "fingerprint": self.fingerprint,
        }
        write_json(folder / JSON_FILE, description)

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Read the tokenizer that `save` wrote.

        Raises:
            UserError: If a file is missing, the two do not belong together, or they are of a foreign format.
        """
        folder = Path(folder)
        for name in (MODEL_FILE, JSON_FILE):
            if not (folder / name).is_file():
                raise UserError(
                    f"no {name} in '{folder}'; give a folder that `nanochat-lit tokenizer train` or a run wrote"
                )
        description = read_json(folder / JSON_FILE)
        version = description.get("format_version") if isinstance(description, dict) else None
        if version != FORMAT_VERSION:
            raise UserError(
                f"'{folder / JSON_FILE}' has format_version {version!r}, but this version reads {FORMAT_VERSION}; "
                "train the tokenizer again"
            )
        model = (folder / MODEL_FILE).read_bytes()
        if hashlib.sha256(model).hexdigest() != description.get("fingerprint"):
            raise UserError(
                f"'{folder / MODEL_FILE}' is not the file that {JSON_FILE} describes (its sha256 differs): "
                "damaged, or of another tokenizer; copy both files again"
            )
        try:
            tokenizer = cls(model)
        except UserError as error:
            raise UserError(f"'{folder / MODEL_FILE}': {error}") from None
        if description.get("special_ids") != tokenizer.special_ids:
            raise UserError(
                f"'{folder / JSON_FILE}' names other control tokens than {MODEL_FILE}; copy both files again"
            )
        return tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of tokens, control tokens included."""
        return len(self._bytes)

    @property
    def bos_id(self) -> int:
        """The id that begins every document and conversation."""
        return SPECIAL_TOKENS.index(BOS)

    @property
    def special_ids(self) -> dict[str, int]:
        """Ids of the nine control tokens by name, such as '<|bos|>'."""
        return {token: index for index, token in enumerate(SPECIAL_TOKENS)}

    @property
    def fingerprint(self) -> str:
        """The sha256 of the model file, in hexadecimal: equal for equal tokenizers."""
        return hashlib.sha256(self._model).hexdigest()

    def encode(self, text: str, prepend_bos: bool = False) -> list[int]:
        """Token ids of `text`; names of control tokens in it are ordinary text.

        Raises:
            UserError: If the text holds a lone surrogate, which UTF-8 cannot express.
        """
        if _SPACE_MARK in text:
            token_ids = self._encode_with_space_marks(text)
        else:
            token_ids = self._processor.EncodeAsIds(_utf8(text))
        return [self.bos_id, *token_ids] if prepend_bos else token_ids

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """Token ids of each text, without bos; `num_threads` native threads share the work."""
        plain = [b"" if _SPACE_MARK in text else _utf8(text, index) for index, text in enumerate(texts)]
        if not plain:
            return []
        batch = self._processor.Encode(plain, out_type=int, num_threads=max(1, num_threads))
        for index, text in enumerate(texts):
            if _SPACE_MARK in text:
                batch[index] = self._encode_with_space_marks(text, index)
        return batch

    def _encode_with_space_marks(self, text: str, index: int | None = None) -> list[int]:
        _utf8(text, index)  # an error must count characters from the start of the whole text
        token_ids: list[int] = []
        for number, segment in enumerate(text.split(_SPACE_MARK)):
            if number:
                token_ids += _SPACE_MARK_IDS
            token_ids += self._processor.EncodeAsIds(_utf8(segment))
        return token_ids

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

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[bytes]]:
        return Tokenizer, (self._model,)


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


def _utf8(text: str, index: int | None = None) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        where = "the text" if index is None else f"text {index} of the batch"
        raise UserError(
            f"{where} has a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start}, which is not "
            "valid Unicode; remove it or replace it by U+FFFD"
        ) from None


def _piece_bytes(processor: "sentencepiece.SentencePieceProcessor") -> list[bytes]:
    """The bytes of every token, after checking that the model has this file's layout."""
    size = processor.GetPieceSize()
    if size <= FIRST_BYTE_ID + NUM_BYTES:
        raise ValueError(f"it has only {size} tokens")
    for index, token in enumerate(SPECIAL_TOKENS):
        if processor.IdToPiece(index) != token or not processor.IsControl(index):
            raise ValueError(f"token {index} is not {token}")
    if not processor.IsUnknown(UNK_ID) or not all(
        processor.IsByte(FIRST_BYTE_ID + value) and processor.IdToPiece(FIRST_BYTE_ID + value) == f"<0x{value:02X}>"
        for value in range(NUM_BYTES)
    ):
        raise ValueError("its byte tokens are not where they belong")
    pieces = [b""] * FIRST_BYTE_ID + [bytes([value]) for value in range(NUM_BYTES)]
    for index in range(len(pieces), size):
        pieces.append(processor.IdToPiece(index).replace(_SPACE_MARK, " ").encode("utf-8"))
    return pieces
