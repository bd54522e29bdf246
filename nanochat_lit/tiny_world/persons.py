"""Names that the model has never seen, copied: a user says "I'm Bob.", and the model answers "Nice to meet you, Bob!"."""

from random import Random

from nanochat_lit.tiny_world.templates import names, pick
from nanochat_lit.tiny_world.turns import Turn, capitalise, decorate, draw
from nanochat_lit.tiny_world.unknown import invented_name, name_key

CATEGORY = "persons"


def _name(rng: Random) -> str:
    """A name from outside the world, or an invented one."""
    if rng.random() < 0.5:
        return pick(rng, CATEGORY, "names")
    return capitalise(invented_name(rng, "animal"))


def sample(rng: Random, split: str) -> list[Turn]:
    """A user who gives a name from outside the world; often the model is asked for it at once."""

    def make(rng: Random) -> Turn:
        name = _name(rng)
        question = decorate(rng, pick(rng, "follow_ups", "named").format(n=name), polite=False)
        said = name.lower() if name not in question else name
        answer = f"Nice to meet you, {said}! How can I help you?"
        expect = {"any": [name], "none": list(names())}
        return Turn(CATEGORY, name_key(name), question, answer, expect)

    first = draw(rng, split, make)
    if rng.random() < 0.5:
        return [first]
    name = first.expect["any"][0]
    said = name if name in first.question else name.lower()
    question = decorate(rng, pick(rng, "follow_ups", "ask_name"), polite=False)
    return [first, Turn(CATEGORY, first.key, question, f"Your name is {said}.", first.expect)]
