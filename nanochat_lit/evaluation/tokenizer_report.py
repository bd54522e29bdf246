"""How well tokenizers compress given texts: bytes per token, the more the better."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

EncodeBatch = Callable[[Sequence[str]], Sequence[Sequence[int]]]


@dataclass(frozen=True, kw_only=True)
class Compression:
    """One tokenizer on one set of texts."""

    tokenizer: str
    """Name of the tokenizer."""
    vocab_size: int
    """Tokens in its vocabulary."""
    texts: str
    """Name of the texts."""
    num_bytes: int
    """Length of the texts in UTF-8."""
    num_tokens: int
    """Tokens that the texts become."""

    @property
    def bytes_per_token(self) -> float:
        """Mean number of bytes that one token stands for; 0 without text."""
        return self.num_bytes / self.num_tokens if self.num_tokens else 0.0


def measure_compression(
    tokenizers: Mapping[str, tuple[int, EncodeBatch]], texts: Mapping[str, Sequence[str]]
) -> list[Compression]:
    """Encode every set of texts with every tokenizer.

    Args:
        tokenizers: Vocabulary size and batch encoder by name.
        texts: Documents by name of their set.

    Returns:
        One entry for every pair, by texts, then by tokenizer.
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
    """A text table: one line a tokenizer and set of texts, with the first tokenizer of a set as the measure."""
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
