"""Compression of texts by tokenizers in bytes per token (higher is better)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

EncodeBatch = Callable[[Sequence[str]], Sequence[Sequence[int]]]


@dataclass(frozen=True, kw_only=True)
class Compression:
    """One tokenizer on one set of texts."""

    tokenizer: str
    """Name of the tokenizer."""
    vocab_size: int
    """Vocabulary size."""
    texts: str
    """Name of the texts."""
    num_bytes: int
    """Length of the texts in UTF-8, bytes."""
    num_tokens: int
    """Number of tokens of the texts."""

    @property
    def bytes_per_token(self) -> float:
        """Mean number of bytes per token; 0 without text."""
        return self.num_bytes / self.num_tokens if self.num_tokens else 0.0


def measure_compression(
    tokenizers: Mapping[str, tuple[int, EncodeBatch]], texts: Mapping[str, Sequence[str]]
) -> list[Compression]:
    """Measure bytes per token of every tokenizer on every set of texts.

    Args:
        tokenizers: Vocabulary size and batch encoder by name.
        texts: Documents by name of the set.

    Returns:
        One entry per combination, ordered by texts, then by tokenizer.
    """
    return [
        Compression(
            tokenizer=name,
            vocab_size=vocab_size,
            texts=title,
            num_bytes=sum(len(document.encode("utf-8")) for document in documents),
            num_tokens=sum(len(token_ids) for token_ids in encode_batch(documents)),
        )
        for title, documents in texts.items()
        for name, (vocab_size, encode_batch) in tokenizers.items()
    ]


def format_compression(results: Sequence[Compression]) -> str:
    """Format a text table with a line per tokenizer and set of texts, relative to the first tokenizer."""
    names = ("texts", "tokenizer", "vocabulary", "bytes", "tokens", "bytes/token", "against first")
    lines: list[tuple[str, ...]] = [names]
    first: dict[str, Compression] = {}
    for result in results:
        base = first.setdefault(result.texts, result)
        ratio = result.bytes_per_token / base.bytes_per_token - 1 if base.bytes_per_token else 0.0
        counts = (str(result.vocab_size), str(result.num_bytes), str(result.num_tokens))
        compared = "" if result is base else f"{ratio:+.1%}"
        lines.append((result.texts, result.tokenizer, *counts, f"{result.bytes_per_token:.3f}", compared))
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
