"""Which split an item belongs to: a stable hash of its key, the same on every machine and in every process.

An item is what a question is about (the operands of a sum, a phrasing of a fact, an invented name), never how it is
decorated ("please", lower case, a missing question mark). Its key decides its split once and for all, so no generator
needs a list of what the others have used.
"""

import hashlib

from nanochat_lit.common.errors import UserError

SPLITS = ("train", "validation", "test")
TEST_PERCENT = 8
VALIDATION_PERCENT = 4
COMMON_PREFIX = "common:"

# Apostrophes go too: "what's" and "whats" must be the same question.
_DROPPED = str.maketrans(dict.fromkeys('?!.,:;"()[]-_/¿¡', " ") | {"'": None, "\u2019": None})


def normalise(text: str) -> str:
    """Lower case, without punctuation, single spaces: the form in which two questions are compared."""
    return " ".join(text.lower().translate(_DROPPED).split())


def split_of(key: str) -> str:
    """The split ("train", "validation" or "test") of the item with this key.

    Keys that begin with "common:" are always training items: the few phrasings that everybody tries first ("Hi",
    "Who are you?") must not be missing from training, so they are not in the held-out splits either.
    """
    if key.startswith(COMMON_PREFIX):
        return "train"
    digest = hashlib.blake2b(key.encode("utf-8"), digest_size=4).digest()
    percent = int.from_bytes(digest, "big") % 100
    if percent < TEST_PERCENT:
        return "test"
    return "validation" if percent < TEST_PERCENT + VALIDATION_PERCENT else "train"


def check_split(split: str) -> str:
    """The split's full name ("val" is short for "validation").

    Raises:
        UserError: the name is not one of the splits.
    """
    full_name = "validation" if split == "val" else split
    if full_name not in SPLITS:
        raise UserError(f"unknown split {split!r} of tiny_world: use one of {', '.join(SPLITS)}")
    return full_name
