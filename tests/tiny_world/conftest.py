from __future__ import annotations

from itertools import islice

import pytest

from nanochat_lit.tiny_world import conversations, documents
from nanochat_lit.tiny_world.splits import SPLITS

NUM_TRAIN = 15_000
NUM_HELD_OUT = 6_000


@pytest.fixture(scope="session")
def conversations_by_split():
    counts = dict.fromkeys(SPLITS, NUM_HELD_OUT) | {"train": NUM_TRAIN}
    return {split: list(islice(conversations(split, seed=5), counts[split])) for split in SPLITS}


@pytest.fixture(scope="session")
def documents_by_split():
    counts = dict.fromkeys(SPLITS, 2_000) | {"train": 8_000}
    return {split: list(islice(documents(split, seed=5), counts[split])) for split in SPLITS}
