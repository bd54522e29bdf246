"""Doubt and contradiction: an answer that was right is said again.

Chains of turns like `follow_ups`; the item is the first turn with the wording of the doubt.
"""

from random import Random

from nanochat_lit.tiny_world import arithmetic, calculations, relations
from nanochat_lit.tiny_world.splits import normalise, split_of
from nanochat_lit.tiny_world.templates import pick
from nanochat_lit.tiny_world.turns import Expect, Turn, decorate, plain_text

CATEGORY = "doubts"
_MAX_TRIES = 20


def _first(rng: Random, split: str) -> tuple[Turn, Expect, str]:
    """A turn, how its repetition is judged, and another answer that a user may insist on."""
    choice = rng.random()
    if choice < 0.5:
        turn = (arithmetic if choice < 0.35 else calculations).sample(rng, split)
        value = turn.expect.get("tool") or turn.expect.get("number")
        if value is None:
            return turn, turn.expect, str(rng.randrange(2, 100))
        near = round(float(value)) + rng.choice((-10, -2, -1, 1, 2, 10))
        return turn, {"number": value}, str(near)
    category = rng.choice(("facts", "facts", "days", "opposites"))
    turn = relations.sample(rng, split, category)
    return turn, {"any": turn.expect["any"]}, rng.choice(turn.expect["none"])


def _doubt(rng: Random, split: str, turn: Turn, expect: Expect, other: str) -> Turn | None:
    """A doubt of the turn's answer that belongs to the split, or None."""
    said = plain_text(turn.answer)
    for _ in range(_MAX_TRIES):
        asks = rng.random() < 0.5
        wording = pick(rng, CATEGORY, "asked" if asks else "contradicted")
        key = f"{CATEGORY}:{normalise(wording)}|{turn.key}"
        if split_of(key) == split:
            answer = f"Yes, I am sure. {said}" if asks else f"I am sure. {said}"
            question = decorate(rng, wording.format(o=other), polite=False, names_inside=True)
            return Turn(CATEGORY, key, question, answer, expect)
    return None


def sample(rng: Random, split: str) -> list[Turn]:
    """A question, and the user's doubt of the answer; sometimes the user insists once more."""
    while True:
        turn, expect, other = _first(rng, split)
        doubts = [_doubt(rng, split, turn, expect, other) for _ in range(rng.choice((1, 1, 1, 2)))]
        if None not in doubts:
            return [turn, *(doubt for doubt in doubts if doubt)]
