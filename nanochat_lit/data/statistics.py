"""What a corpus is made of: sizes, lengths, duplicates, languages, control characters, and the share of every file."""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nanochat_lit.data.duplicates import SIMILARITY, ExactDuplicates, NearDuplicates
from nanochat_lit.data.encoding import batched
from nanochat_lit.data.languages import guess_language
from nanochat_lit.data.shards import ShardSource

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd]")
"""Control characters except tab and ends of lines, and the mark of what could not be decoded."""
_BATCH = 128


@dataclass
class CorpusStatistics:
    """Counts over the documents that were read."""

    documents: int = 0
    """Documents."""
    passed_over: int = 0
    """Rows without a document: null, empty, or no text."""
    characters: int = 0
    """Characters."""
    bytes: int = 0
    """Bytes of the text in UTF-8."""
    tokens: int | None = None
    """Tokens, if there is a tokenizer."""
    lengths: dict[int, int] = field(default_factory=dict)
    """Documents by the power of two of characters that they reach: 9 for 512 to 1023."""
    languages: dict[str, int] = field(default_factory=dict)
    """Characters by language, as guessed."""
    exact_duplicates: float = 0.0
    """Share of documents that are a copy of an earlier one."""
    near_duplicates: float = 0.0
    """Share of the documents that were compared that are nearly the same as an earlier one."""
    compared: int = 0
    """Documents that were compared for it."""
    similarity: float = SIMILARITY
    """Common share of runs of five words from which documents are near duplicates."""
    control_characters: int = 0
    """Control characters, tab and ends of lines excepted, and U+FFFD."""
    documents_with_control: int = 0
    """Documents that have any."""
    sources: dict[str, dict[str, int]] = field(default_factory=dict)
    """Documents and characters by source."""
    is_sample: bool = False
    """Whether there were more documents than were read."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def corpus_statistics(
    sources: dict[str, ShardSource],
    count_tokens: Callable[[Sequence[str]], int] | None = None,
    *,
    max_docs: int,
    near_docs: int,
    seed: int = 0,
) -> CorpusStatistics:
    """Read a corpus.

    Args:
        sources: By name.
        count_tokens: Tokens of some texts, with BOS.
        max_docs: Documents to read, from blocks drawn at random if there are more.
        near_docs: Documents to compare for near duplicates, the first that are read.
        seed: Which blocks are drawn.
    """
    found = CorpusStatistics(tokens=None if count_tokens is None else 0)
    exact, near = ExactDuplicates(), NearDuplicates()
    lengths: Counter[int] = Counter()
    languages: Counter[str] = Counter()
    total = sum(source.num_rows("all") for source in sources.values())
    found.is_sample = total > max_docs
    for batch in batched(_documents(sources, max_docs if found.is_sample else None, seed), _BATCH):
        for name, text in batch:
            found.documents += 1
            found.characters += len(text)
            found.bytes += len(text.encode("utf-8", "surrogatepass"))
            lengths[len(text).bit_length() - 1] += 1
            languages[guess_language(text)] += len(text)
            num_control = len(CONTROL.findall(text))
            found.control_characters += num_control
            found.documents_with_control += num_control > 0
            exact.add(text)
            if near.num_documents < near_docs:
                near.add(text)
            counts = found.sources.setdefault(name, {"documents": 0, "characters": 0})
            counts["documents"] += 1
            counts["characters"] += len(text)
        if count_tokens is not None:
            found.tokens = (found.tokens or 0) + count_tokens([text for _, text in batch])
    found.passed_over = sum(source.num_skipped for source in sources.values())
    found.lengths = dict(sorted(lengths.items()))
    found.languages = dict(languages.most_common())
    found.exact_duplicates, found.near_duplicates, found.compared = exact.share, near.share, near.num_documents
    return found


def _documents(sources: dict[str, ShardSource], max_docs: int | None, seed: int) -> Iterator[tuple[str, str]]:
    """Texts with the name of their source: that which was given, or the file if only one was given."""
    blocks = [
        (name if len(sources) > 1 else file.path.name, source, index, start, stop)
        for name, source in sources.items()
        for index, file in enumerate(source.files)
        for start, stop in source.opened(index).blocks()
    ]
    if max_docs is not None:
        random.Random(seed).shuffle(blocks)
    num_documents = 0
    for name, source, index, start, stop in blocks:
        for text in source.read(index, range(start, stop)):
            if text is not None:
                yield name, text
                num_documents += 1
                if num_documents == max_docs:
                    return
