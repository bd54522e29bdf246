"""Plain English: words that a native reader has to decipher do not come back."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

ODD = {
    r"so many": "this many, N",
    r"whoever|nobody|somebody": "passive or imperative",
    r"newcomers?": "new request",
    r"likelier|likeliest": "more likely, most likely",
    r"at hand": "available",
    r"pairs? of tokens|table of pairs": "bigram embedding",
    r"verbs?": "command",
    r"examination": "held-out evaluation",
    r"speaks chat": "is a chat model",
    r"parcels?": "chunk",
    r"besides": "in addition",
    r"is no [a-z]+": "is not a, does not exist",
    r"(?:as it|as they) comes?|of that kind": "say what",
    r"goes on|go on": "continues, resumes",
    r"told": "reports, prints, raises",
    r"passed over": "skipped",
    r"(?:begun|made|built|computed) anew": "again",
    r"for want of": "because ... is not available",
    r"all the same": "anyway",
    r"processor time": "CPU time",
    r"asked for only": "called without",
    r"laid out|lay out": "arranged",
    r"such a one": "say what",
    r"as it stands": "unchanged",
}
"""Patterns, and what to write instead (design standard: the field's word, one word for one thing)."""

ALLOWED = {"recipes/LOG.md"}
"""A diary keeps its words."""

PAGES = [
    "README.md",
    ".github/CONTRIBUTING.md",
    *(f"recipes/docs/{p.name}" for p in (ROOT / "recipes/docs").glob("*.md")),
]


OPENING = re.compile(r'^\s*"""(What|Of the|Whoever|Who|Where|Which) ')
"""Docstrings start with a verb (Returns, Raises, Writes) or a noun phrase."""


def odd_words(text):
    for number, line in enumerate(text.splitlines(), 1):
        if opening := OPENING.match(line):
            yield f"{number}: {opening[1]!r}: start with a verb or a noun phrase"
        for pattern, better in ODD.items():
            for match in re.finditer(rf"\b(?:{pattern})\b", line, flags=re.IGNORECASE):
                yield f"{number}: {match[0]!r}: write {better}"


PACKAGE = [
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "nanochat_lit").rglob("*.py")
    if "tiny_world" not in path.parts  # its texts are what a child would say
]


@pytest.mark.parametrize("page", sorted({*PAGES, *PACKAGE} - ALLOWED))
def test_pages(page):
    assert list(odd_words((ROOT / page).read_text("utf-8"))) == []


def test_the_check_finds_odd_words():
    assert list(odd_words('Of so many rows.\nlikelier\n    """What it is."""')) == [
        "1: 'so many': write this many, N",
        "2: 'likelier': write more likely, most likely",
        "3: 'What': start with a verb or a noun phrase",
    ]
