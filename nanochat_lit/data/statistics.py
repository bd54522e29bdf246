"""Corpus statistics: sizes, lengths, duplicates, languages, control characters, and the share of every source."""

import hashlib
import random
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from nanochat_lit.data.prepared import batched
from nanochat_lit.data.shards import ShardSource

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd]")
"""Control characters except tab and line ends, and U+FFFD."""
_BATCH = 128
NUM_HASHES = 64
BAND = 4
"""Hashes per band; documents that agree in a band are compared. With 16 bands a pair of similarity 0.8 is found with
probability 99.98%."""
SHINGLE_WORDS = 5
SIMILARITY = 0.8
"""Minimum similarity (share of common word 5-grams) of near duplicates."""
_PRIME = (1 << 31) - 1
_WORD = re.compile(r"\w+")
FREQUENT_WORDS = {
    "Latin": {
        "English": "the of and to in is that it was for with as on be by this are",
        "German": "der die und das ist nicht ein eine den von mit sich auf dem zu auch",
        "French": "le la les des et est une dans que pour qui sur pas avec du au",
        "Spanish": "el los las una que del por con para es se su como más lo y",
        "Italian": "il di che la per una non sono con del della gli è si nel anche",
        "Portuguese": "o os uma que não com para do da em são mais como na ao e",
        "Dutch": "de het een van en is dat niet met voor op zijn te aan ook er",
    },
    "Cyrillic": {
        "Russian": "и в не на что с это как по но из он для все от так",  # noqa: RUF001
        "Ukrainian": "і в не на що з це як та але він для від до є за",  # noqa: RUF001
    },
}
"""By script and language."""
_SCRIPT_LANGUAGES = {"Cjk": "Chinese", "Hangul": "Korean"}
_LOOK_CHARS = 600
_FEWEST_WORDS_SHARE = 0.08
_LETTERS = re.compile(r"[^\W\d_]+")


@dataclass
class CorpusStatistics:
    """Statistics of the documents that were read."""

    documents: int = 0  # number of documents
    passed_over: int = 0  # number of records without a document: null, empty, or not text
    characters: int = 0  # number of characters
    bytes: int = 0  # bytes of the text in UTF-8
    tokens: int | None = None  # number of tokens, if a tokenizer was given
    lengths: dict[int, int] = field(default_factory=dict)
    """Number of documents by floor(log2(characters)): 9 for 512 to 1023."""
    languages: dict[str, int] = field(default_factory=dict)  # characters by estimated language
    exact_duplicates: float = 0.0  # share of documents that are a copy of an earlier one
    near_duplicates: float = 0.0  # share of the compared documents that nearly equal an earlier one
    compared: int = 0  # number of compared documents
    similarity: float = SIMILARITY  # minimum share of common word 5-grams of near duplicates
    control_characters: int = 0  # number of control characters, except tab and line ends, and of U+FFFD
    documents_with_control: int = 0  # number of documents that contain them
    sources: dict[str, dict[str, int]] = field(default_factory=dict)  # documents and characters by source
    is_sample: bool = False  # whether only a sample was read

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def corpus_statistics(
    sources: dict[str, ShardSource],
    count_tokens: Callable[[Sequence[str]], int] | None = None,
    *,
    max_docs: int,
    near_docs: int,
    seed: int = 0,
) -> CorpusStatistics:
    """Compute the statistics of a corpus of sources by name.

    A corpus with more than `max_docs` documents is sampled in random blocks; `near_docs` of them are compared for near
    duplicates. `count_tokens` returns the number of tokens of texts, including BOS.
    """
    found = CorpusStatistics(tokens=None if count_tokens is None else 0)
    compared: list[str] = []
    digests: set[bytes] = set()
    lengths: Counter[int] = Counter()
    languages: Counter[str] = Counter()
    total = sum(source.num_rows("all") for source in sources.values())
    found.is_sample = total > max_docs
    for batch in batched(_documents(sources, max_docs if found.is_sample else None, seed), _BATCH):
        for name, text in batch:
            found.documents += 1
            found.characters += len(text)
            data = text.encode("utf-8", "surrogatepass")
            found.bytes += len(data)
            digests.add(hashlib.blake2b(data, digest_size=8).digest())
            lengths[len(text).bit_length() - 1] += 1
            languages[guess_language(text)] += len(text)
            num_control = len(CONTROL.findall(text))
            found.control_characters += num_control
            found.documents_with_control += num_control > 0
            if len(compared) < near_docs:
                compared.append(text)
            counts = found.sources.setdefault(name, {"documents": 0, "characters": 0})
            counts["documents"] += 1
            counts["characters"] += len(text)
        if count_tokens is not None:
            found.tokens = (found.tokens or 0) + count_tokens([text for _, text in batch])
    found.passed_over = sum(source.num_skipped for source in sources.values())
    found.lengths = dict(sorted(lengths.items()))
    found.languages = dict(languages.most_common())
    found.exact_duplicates = (found.documents - len(digests)) / max(1, found.documents)
    found.near_duplicates, found.compared = near_duplicates(compared) / max(1, len(compared)), len(compared)
    return found


def near_duplicates(texts: Sequence[str]) -> int:
    """Return how many texts share most of their word 5-grams with an earlier one, by banded MinHash (Broder 1997)."""
    rng = np.random.default_rng(0)
    factors = rng.integers(1, _PRIME, (NUM_HASHES, 1), dtype=np.int64)
    terms = rng.integers(0, _PRIME, (NUM_HASHES, 1), dtype=np.int64)
    bands: dict[tuple[int, bytes], list[np.ndarray]] = {}
    num_found = 0
    for text in texts:
        words = _WORD.findall(text.lower())
        runs = {" ".join(words[start : start + SHINGLE_WORDS]) for start in range(len(words) - SHINGLE_WORDS + 1)}
        if not runs:
            continue
        hashes = np.fromiter((zlib.crc32(run.encode("utf-8", "surrogatepass")) for run in runs), np.int64, len(runs))
        # the product of two 31-bit values is less than 2^63
        signature = ((factors * (hashes % _PRIME) + terms) % _PRIME).min(axis=1)
        keys = [(start, signature[start : start + BAND].tobytes()) for start in range(0, NUM_HASHES, BAND)]
        others = [other for key in keys for other in bands.get(key, [])[:8]]  # a few suffice to find a duplicate
        num_found += any((signature == other).mean() >= SIMILARITY for other in others)
        for key in keys:
            bands.setdefault(key, []).append(signature)
    return num_found


def script_shares(text: str) -> dict[str, float]:
    """Return the share of each script among the letters of the first characters, in descending order; may be empty."""
    counts: Counter[str] = Counter()
    for char, count in Counter(text[:_LOOK_CHARS]).items():
        if char.isalpha():  # names are like LATIN SMALL LETTER A, CJK UNIFIED IDEOGRAPH-6CB3
            counts[re.split("[ -]", unicodedata.name(char, "unnamed"))[0].capitalize()] += count
    return {script: count / counts.total() for script, count in counts.most_common()}


def guess_language(text: str) -> str:
    """Return the language, or the script if its languages are not distinguished, or 'none' for text without letters.

    Latin and Cyrillic languages are identified by frequent words in the first characters. This is reliable for a page
    of ordinary text, but not for a line, a list of names or program code.
    """
    shares = script_shares(text)
    if not shares:
        return "none"
    if shares.get("Hiragana", 0.0) + shares.get("Katakana", 0.0) > 0.05:
        return "Japanese"
    script = next(iter(shares))
    if script not in FREQUENT_WORDS:
        return _SCRIPT_LANGUAGES.get(script, script)
    words = [word.lower() for word in _LETTERS.findall(text[:_LOOK_CHARS])]
    hits = {
        language: sum(word in frequent.split() for word in words) / max(1, len(words))
        for language, frequent in FREQUENT_WORDS[script].items()
    }
    best = max(hits, key=lambda language: hits[language])
    return best if hits[best] >= _FEWEST_WORDS_SHARE else f"{script}, other"


def _documents(sources: dict[str, ShardSource], max_docs: int | None, seed: int) -> Iterator[tuple[str, str]]:
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
