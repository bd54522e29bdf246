"""nanochat's tokenizer: byte-level BPE within words split by a pattern, with tiktoken.

It is stored as two text files without pickle: the ranks in tiktoken's format (per line the token's bytes in base64 and
its id), and tokenizer.json with the pattern and the control tokens.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nanochat_lit.common.errors import UserError, missing_package
from nanochat_lit.tokenizer.special_tokens import SPECIAL_TOKENS
from nanochat_lit.tokenizer.tokenizer import JSON_FILE, Tokenizer, utf8

_PROBE = "The 12345 naïve cafés'll\r\n\r\n  \t日本語 🙂\u2581\u0000<|bos|>\u00a0\u3000x\u0301!?\n"
"""Test text of letters, digits, marks, spaces and control characters; detects patterns that lose text."""


class TiktokenTokenizer(Tokenizer):
    """A tokenizer trained by nanochat.

    The pattern, in tiktoken's dialect, splits text into words; of the ranks, the ids of byte strings, lower ones are
    merged first; the control tokens include nanochat's nine. An incomplete vocabulary raises UserError.
    """

    kind = "tiktoken-bpe"
    vocabulary_file = "tokenizer.tiktoken"

    def __init__(self, pattern: str, ranks: Mapping[bytes, int], special_tokens: Mapping[str, int]) -> None:
        self._pattern, self._ranks, self._special_tokens = pattern, dict(ranks), dict(special_tokens)
        token_bytes = _bytes_by_id(self._ranks, self._special_tokens)
        super().__init__(token_bytes, {name: self._special_tokens[name] for name in SPECIAL_TOKENS})
        self._encoding = _encoding(pattern, self._ranks, self._special_tokens)
        try:
            is_lossless = self.decode(self.encode(_PROBE)) == _PROBE
        except ValueError as error:
            raise UserError(f"the tokenizer's pattern {pattern!r} is invalid: {error}") from None
        if not is_lossless:
            raise UserError(f"the tokenizer's pattern {pattern!r} loses text; it is not a nanochat pattern")

    @classmethod
    def from_file(cls, path: Path, description: dict[str, Any]) -> "TiktokenTokenizer":
        """As in `Tokenizer`."""
        pattern, special_tokens = description.get("pattern"), description.get("special_ids")
        if not isinstance(pattern, str) or not isinstance(special_tokens, dict):
            raise UserError(f"{JSON_FILE} next to '{path}' has no pattern or special_ids; copy both files again")
        ranks: dict[bytes, int] = {}
        try:
            for line in path.read_bytes().splitlines():
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise UserError(f"'{path}' is not a list of tokens in base64; copy both files again") from None
        return cls(pattern, ranks, special_tokens)

    def vocabulary(self) -> bytes:
        """Return the ranks in tiktoken's format."""
        lines = sorted((rank, base64.b64encode(token)) for token, rank in self._ranks.items())
        return b"".join(b"%s %d\n" % (token, rank) for rank, token in lines)

    def details(self) -> dict[str, Any]:
        """Return the control tokens and the pattern."""
        return {"special_ids": self._special_tokens, "pattern": self._pattern}

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256 of ranks, pattern and control tokens in hexadecimal."""
        rest = json.dumps([self._pattern, sorted(self._special_tokens.items())])
        return hashlib.sha256(self.vocabulary() + rest.encode()).hexdigest()

    @property
    def pattern(self) -> str:
        """Regular expression that splits text into words."""
        return self._pattern

    @property
    def ranks(self) -> dict[bytes, int]:
        """Id of each byte string; lower ids are merged first."""
        return dict(self._ranks)

    def encode(self, text: str, prepend_bos: bool = False) -> list[int]:
        """As in `Tokenizer`."""
        utf8(text)  # tiktoken would silently replace a lone surrogate
        token_ids = self._encoding.encode_ordinary(text)
        return [self.bos_id, *token_ids] if prepend_bos else token_ids

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """As in `Tokenizer`."""
        for index, text in enumerate(texts):
            utf8(text, index)
        return self._encoding.encode_ordinary_batch(list(texts), num_threads=max(1, num_threads))

    def __reduce__(self) -> tuple[Any, ...]:
        return TiktokenTokenizer, (self._pattern, self._ranks, self._special_tokens)


def _encoding(pattern: str, ranks: dict[bytes, int], special_tokens: dict[str, int]) -> Any:
    try:
        import tiktoken
    except ModuleNotFoundError:
        raise missing_package("nanochat's tokenizer", "tiktoken", "tiktoken") from None
    try:
        return tiktoken.Encoding("nanochat", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special_tokens)
    except ValueError as error:
        raise UserError(f"the tokenizer's pattern {pattern!r} is invalid: {error}") from None


def _bytes_by_id(ranks: Mapping[bytes, int], special_tokens: Mapping[str, int]) -> list[bytes]:
    """Return the bytes of every token, after checking that ids are 0, 1, 2, ... and every text can be encoded."""
    if not all(type(rank) is int for rank in [*ranks.values(), *special_tokens.values()]):
        raise UserError("the ids of the tokenizer are not integers")
    missing = [name for name in SPECIAL_TOKENS if name not in special_tokens]
    if missing:
        raise UserError(f"the tokenizer lacks the control tokens {', '.join(missing)}; it is not a nanochat tokenizer")
    absent = sum(bytes([value]) not in ranks for value in range(256))
    if absent:
        raise UserError(f"the tokenizer lacks {absent} of the 256 bytes; it could not encode every text")
    by_id = {rank: token for token, rank in ranks.items()} | dict.fromkeys(special_tokens.values(), b"")
    if sorted(by_id) != list(range(len(ranks) + len(special_tokens))):
        raise UserError("the ids of the tokenizer are not 0, 1, 2, ... without repeats")
    return [by_id[index] for index in range(len(by_id))]
