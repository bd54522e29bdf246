"""Lossless byte-fallback BPE on sentencepiece.

Layout of the ids for every vocabulary size:

    0 .. 8      the nine control tokens, in the order of SPECIAL_TOKENS (bos is 0); never produced by text
    9           sentencepiece's unknown token; required, but unused because of the bytes
    10 .. 265   the 256 bytes, for text without a learned token
    266 ..      learned tokens: merges by rank, then single characters

Every id represents a fixed byte string (empty for 0 to 9), and decoding concatenates them. Lengths in bytes are thus
exact, and any sequence of ids can be decoded. sentencepiece represents a space as U+2581 and would decode a literal
U+2581 as a space. Text is therefore split at that character, which is encoded as three bytes. If the corpus has almost
no spaces, so that no token contains one, text is split at spaces too.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from nanochat_lit.common.errors import UserError
from nanochat_lit.tokenizer.special_tokens import SPECIAL_TOKENS
from nanochat_lit.tokenizer.tokenizer import JSON_FILE, OWN_KIND, Tokenizer, utf8
from nanochat_lit.tokenizer.training import FIRST_BYTE_ID, NUM_BYTES, UNK_ID

_SPACE_MARK = "\u2581"


class SentencePieceTokenizer(Tokenizer):
    """The tokenizer trained by this package; create one with `Tokenizer.train` or `Tokenizer.load`."""

    kind = OWN_KIND
    vocabulary_file = "tokenizer.model"

    def __init__(self, model: bytes) -> None:
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
            token_bytes = _piece_bytes(self._processor)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"this is not a tokenizer of nanochat-lit: {error}; train one or give its folder") from None
        has_space = self._processor.PieceToId(_SPACE_MARK) != UNK_ID
        self._cut_at = _SPACE_MARK if has_space else f"{_SPACE_MARK} "  # otherwise a space would decode to U+2581
        super().__init__(token_bytes, {token: index for index, token in enumerate(SPECIAL_TOKENS)})

    @classmethod
    def from_file(cls, path: Path, description: dict[str, Any]) -> "SentencePieceTokenizer":
        """As in `Tokenizer`."""
        model = path.read_bytes()
        if hashlib.sha256(model).hexdigest() != description.get("fingerprint"):
            raise UserError(
                f"'{path}' is not the file that {JSON_FILE} describes (its sha256 differs): "
                "damaged, or from another tokenizer; copy both files again"
            )
        try:
            tokenizer = cls(model)
        except UserError as error:
            raise UserError(f"'{path}': {error}") from None
        if description.get("special_ids") != tokenizer.special_ids:
            raise UserError(f"{JSON_FILE} next to '{path}' has other control tokens; copy both files again")
        return tokenizer

    def vocabulary(self) -> bytes:
        """Return the serialized model."""
        return self._model

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256 of the model file in hexadecimal; equal for equal tokenizers."""
        return hashlib.sha256(self._model).hexdigest()

    def encode(self, text: str, prepend_bos: bool = False) -> list[int]:
        """See `Tokenizer`."""
        token_ids = self._encode_in_parts(text) if self._is_cut(text) else self._processor.EncodeAsIds(utf8(text))
        return [self.bos_id, *token_ids] if prepend_bos else token_ids

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """See `Tokenizer`."""
        plain = [b"" if self._is_cut(text) else utf8(text, index) for index, text in enumerate(texts)]
        if not plain:
            return []
        batch = self._processor.Encode(plain, out_type=int, num_threads=max(1, num_threads))
        for index, text in enumerate(texts):
            if self._is_cut(text):
                batch[index] = self._encode_in_parts(text, index)
        return batch

    def _is_cut(self, text: str) -> bool:
        return any(character in text for character in self._cut_at)

    def _encode_in_parts(self, text: str, index: int | None = None) -> list[int]:
        utf8(text, index)  # so that errors count characters from the start of the whole text
        token_ids: list[int] = []
        for segment in re.split(f"([{self._cut_at}])", text):
            if segment and segment in self._cut_at:
                token_ids += [FIRST_BYTE_ID + byte for byte in segment.encode()]
            else:
                token_ids += self._processor.EncodeAsIds(utf8(segment))
        return token_ids

    def pieces_and_scores(self) -> tuple[list[str], list[float]]:
        """Text of every token in sentencepiece's spelling, where U+2581 is a space, and its score: a higher one merges first."""
        ids = range(self.vocab_size)
        return [self._processor.IdToPiece(index) for index in ids], [self._processor.GetScore(index) for index in ids]

    def __reduce__(self) -> tuple[type["SentencePieceTokenizer"], tuple[bytes]]:
        return SentencePieceTokenizer, (self._model,)


def _piece_bytes(processor: "sentencepiece.SentencePieceProcessor") -> list[bytes]:
    """Return the bytes of every token, after checking that the model has this module's layout."""
    size = processor.GetPieceSize()
    if size <= FIRST_BYTE_ID + NUM_BYTES:
        raise ValueError(f"it has only {size} tokens")
    for index, token in enumerate(SPECIAL_TOKENS):
        if processor.IdToPiece(index) != token or not processor.IsControl(index):
            raise ValueError(f"token {index} is not {token}")
    for index in range(len(SPECIAL_TOKENS), size):
        if processor.IsControl(index):
            raise ValueError(f"the chat template lacks the control token {processor.IdToPiece(index)} (id {index})")
    if not processor.IsUnknown(UNK_ID) or not all(
        processor.IsByte(FIRST_BYTE_ID + value) and processor.IdToPiece(FIRST_BYTE_ID + value) == f"<0x{value:02X}>"
        for value in range(NUM_BYTES)
    ):
        raise ValueError("its byte tokens are not at ids 10 to 265")
    pieces = [b""] * FIRST_BYTE_ID + [bytes([value]) for value in range(NUM_BYTES)]
    for index in range(len(pieces), size):
        pieces.append(processor.IdToPiece(index).replace(_SPACE_MARK, " ").encode("utf-8"))
    return pieces
