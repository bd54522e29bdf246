"""Stories of a hero in trouble, a helper, and how it ended.

A held-out item is the pair of the hero's kind and name. One plot is a list of sentences over the same placeholders:
{N} hero, {he} {him} {his} the hero's pronouns, {H} the helper ("an old owl" or "Mara"), {item} a thing.
Helpers have no pronouns, so that every pronoun of a story is the hero's.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from nanochat_lit.data.tiny_world.lexicon import NAMES, PRONOUNS, STORY_ANIMALS
from nanochat_lit.data.tiny_world.splits import split_of
from nanochat_lit.data.tiny_world.turns import Expect, Turn, capitalise, decorate, draw, with_article


class Character(NamedTuple):
    """A hero or helper."""

    kind: str
    name: str


ADJECTIVES = ("little", "brave", "clever", "kind", "shy", "curious", "cheerful", "quiet", "young", "funny", "small")
_PLACES = (
    "in a green forest",
    "near a blue lake",
    "on a small farm",
    "at the edge of a village",
    "on a high hill",
    "under an old bridge",
    "behind the mill",
    "in a warm valley",
    "by the sea",
    "next to a wide river",
    "in a quiet garden",
    "beside a windy field",
)
HOBBIES = (
    "sing in the morning",
    "count the stars",
    "paint small pictures",
    "bake bread",
    "collect round stones",
    "dance in the rain",
    "read old books",
    "plant flowers",
    "look at the clouds",
    "play the drum",
    "swim in the pond",
    "tell jokes",
)
_ITEMS = ("red ball", "silver key", "blue kite", "warm hat", "little drum", "old map", "gold coin", "green book")
_HIDING = ("under a big leaf", "behind a stone", "in the tall grass", "inside a basket", "next to a tree", "in a boot")
_TIMES = ("One morning", "One evening", "One cold day", "One sunny day", "One day", "Last spring", "One windy night")
_OPENINGS = ("Once there was", "Once upon a time there was", "Long ago there lived", "There once was", "Far away lived")
_STRANGERS = ("an old owl", "a wise turtle", "a friendly bear", "a kind farmer", "a small bird", "a strong horse")


class Plot(NamedTuple):
    """Trouble, what the hero did, the help, the end and what the hero learned."""

    trouble: str
    attempt: str
    help: str
    ending: str
    moral: str


PLOTS = (
    Plot(
        "{time}, {N} lost {his} {item}.",
        "{N} looked everywhere, but {he} could not find it.",
        "Then {H} came and helped {him} search.",
        "They found the {item} {hiding}.",
        "{N} learned that two see more than one.",
    ),
    Plot(
        "{time}, {N} lost {his} way in the fog.",
        "{He} walked in circles and felt afraid.",
        "Then {H} came with a lamp and showed {him} the path.",
        "Soon {N} was safe at home.",
        "{N} learned that it is good to ask for help.",
    ),
    Plot(
        "{time}, a storm broke the roof of {his} house.",
        "{N} tried to mend it, but {he} was not strong enough.",
        "Then {H} brought wood and nails.",
        "They worked all day, and the new roof was better than the old one.",
        "{N} learned that work is easy with a friend.",
    ),
    Plot(
        "{time}, {N} fell into a deep hole.",
        "{He} jumped and jumped, but the hole was too deep.",
        "Then {H} heard {him} and let down a rope.",
        "{N} climbed out and laughed.",
        "{N} learned to look where {he} goes.",
    ),
    Plot(
        "{time}, {N} had nothing to eat.",
        "{He} looked for berries, but there were none.",
        "Then {H} shared some bread with {him}.",
        "The next week {N} baked a cake and gave half of it away.",
        "{N} learned that sharing makes everybody happy.",
    ),
    Plot(
        "{time}, {N} wanted to cross the river, but there was no bridge.",
        "{He} was afraid of the cold water.",
        "Then {H} pulled a log to the river.",
        "{N} walked over the log to the other side.",
        "{N} learned that there is always a way.",
    ),
    Plot(
        "{time}, the wind took {his} {item} and put it in a high tree.",
        "{N} could not climb so high.",
        "Then {H} came and shook the tree.",
        "The {item} fell down, and {N} was happy.",
        "{N} learned never to give up.",
    ),
    Plot(
        "{time}, {N} found a {item} that was not {his} own.",
        "{He} wanted to keep it, but {he} felt bad.",
        "Then {H} said that somebody must be looking for it.",
        "{N} gave it back, and the owner thanked {him}.",
        "{N} learned that it feels good to be honest.",
    ),
    Plot(
        "{time}, {N} could not sleep because the night was so dark.",
        "{He} lay in bed and listened to the wind.",
        "Then {H} told {him} that the stars are little lamps.",
        "{N} looked up, smiled and fell asleep.",
        "{N} learned that the dark is not so bad.",
    ),
    Plot(
        "{time}, {N} wanted to win the big race.",
        "{He} ran too fast and soon {he} was tired.",
        "Then {H} told {him} to go slow and steady.",
        "{N} did so and came in first.",
        "{N} learned to be patient.",
    ),
    Plot(
        "{time}, {N} broke a cup and hid it.",
        "{He} could not play because {he} thought about the cup.",
        "Then {H} told {him} to say the truth.",
        "{N} said sorry, and nobody was angry.",
        "{N} learned that the truth is best.",
    ),
    Plot(
        "{time}, {N} heard somebody cry behind the house.",
        "{He} went to look and found {H} with a thorn in one foot.",
        "{N} pulled out the thorn, and {H} stopped crying.",
        "From that day on they were friends.",
        "{N} learned that a kind deed is never lost.",
    ),
)


def story_key(hero: Character) -> str:
    """The key of the stories about this hero."""
    return f"story:{hero.kind},{hero.name}"


def hero(rng: Random) -> Character:
    """A hero."""
    return Character(rng.choice(STORY_ANIMALS), rng.choice(NAMES))


def _words(rng: Random, hero: Character, helper: str) -> dict[str, str]:
    he, him, his = PRONOUNS[hero.name]
    return {
        "N": hero.name,
        "he": he,
        "him": him,
        "his": his,
        "He": capitalise(he),
        "His": capitalise(his),
        "H": helper,
        "item": rng.choice(_ITEMS),
        "hiding": rng.choice(_HIDING),
        "time": rng.choice(_TIMES),
    }


def _stranger(rng: Random, hero: Character) -> str:
    while True:
        stranger = rng.choice(_STRANGERS)
        if hero.kind not in stranger.split():
            return stranger


def short_story(rng: Random, hero: Character, friend: Character | None = None) -> str:
    """A story of about 50 words about the hero, with a named friend or an unnamed helper."""
    words = _words(rng, hero, friend.name if friend else _stranger(rng, hero))
    plot = rng.choice(PLOTS)
    opening = f"Once there was {with_article(rng.choice(ADJECTIVES))} {hero.kind} named {hero.name}."
    if friend:
        opening += f" {capitalise(words['his'])} best friend was {with_article(friend.kind)} named {friend.name}."
    sentences = (plot.trouble, plot.attempt, plot.help, plot.ending)
    return f"{opening} {' '.join(sentences).format(**words)}"


def long_story(rng: Random, hero: Character) -> str:
    """A story of about 60 to 120 words for documents."""
    friend = Character(rng.choice(STORY_ANIMALS), rng.choice(NAMES))
    while friend.name == hero.name or friend.kind == hero.kind:
        friend = Character(rng.choice(STORY_ANIMALS), rng.choice(NAMES))
    words = _words(rng, hero, friend.name)
    he, his = capitalise(words["he"]), words["his"]
    plot = rng.choice(PLOTS)
    parts = [
        f"{rng.choice(_OPENINGS)} {with_article(rng.choice(ADJECTIVES))} {hero.kind} named {hero.name}.",
        f"{he} lived {rng.choice(_PLACES)}.",
    ]
    if rng.random() < 0.8:
        parts.append(f"{hero.name} liked to {rng.choice(HOBBIES)}.")
    parts.append(
        f"{capitalise(his)} {rng.choice(('best ', 'good ', ''))}friend was {with_article(friend.kind)} named {friend.name}."
    )
    parts += [sentence.format(**words) for sentence in plot[: 4 + (rng.random() < 0.8)]]
    if rng.random() < 0.3:
        parts.append(f"After that, {hero.name} and {friend.name} liked to {rng.choice(HOBBIES)} together.")
    return " ".join(parts)


_REQUESTS = (
    "Tell me a story about {who}.",
    "Tell me a short story about {who}.",
    "Can you tell me a story about {who}?",
    "Could you tell a story about {who}?",
    "Write a story about {who}.",
    "Write me a short story about {who}.",
    "I would like a story about {who}.",
    "I want to hear a story about {who}.",
    "Make up a story about {who}.",
    "A story about {who}, please.",
    "Do you know a story about {who}?",
)
_WHO = ("{a} named {n}", "{a} named {n}", "{a} called {n}", "{n} the {k}", "{a} whose name is {n}")


def describe(rng: Random, character: Character) -> str:
    """The way a request names a character."""
    return rng.choice(_WHO).format(a=with_article(character.kind), n=character.name, k=character.kind)


def expect_story(hero: Character, friend: Character | None = None) -> Expect:
    """The characters that were asked for, nobody else of the world's names, and no pronoun of the other kind."""
    asked = [character for character in (hero, friend) if character]
    names = [character.name for character in asked]
    wrong = ("she", "her") if PRONOUNS[hero.name][0] == "he" else ("he", "him", "his")
    return {
        "all": [*names, *(character.kind for character in asked)],
        "none": [*(name for name in NAMES if name not in names), *wrong],
        "min_words": 30,
    }


def _make(rng: Random) -> Turn:
    main = hero(rng)
    friend = None
    who = describe(rng, main)
    if rng.random() < 0.3:
        friend = hero(rng)
        while friend.name == main.name or friend.kind == main.kind:
            friend = hero(rng)
        who += f" and {describe(rng, friend)}"
    return Turn(
        category="stories",
        key=story_key(main),
        question=decorate(rng, rng.choice(_REQUESTS).format(who=who), names_inside=True),
        answer=short_story(rng, main, friend),
        expect=expect_story(main, friend),
    )


def sample(rng: Random, split: str) -> Turn:
    """A request for a story about a named animal."""
    return draw(rng, split, _make)


def document(rng: Random, split: str) -> str:
    """A story whose hero belongs to the split."""
    while split_of(story_key(main := hero(rng))) != split:
        pass
    return long_story(rng, main)
