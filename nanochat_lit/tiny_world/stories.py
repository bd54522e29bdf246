"""Stories of a hero in trouble, a helper, and how it ended. A held-out item is the pair of the hero's kind and name."""

from random import Random
from typing import NamedTuple

from nanochat_lit.tiny_world.splits import split_of
from nanochat_lit.tiny_world.templates import names, pick, pronouns
from nanochat_lit.tiny_world.turns import Expect, Turn, capitalise, decorate, draw, with_article


class Character(NamedTuple):
    """A hero or helper."""

    kind: str
    name: str


def story_key(hero: Character) -> str:
    """The key of the stories about this hero."""
    return f"story:{hero.kind},{hero.name}"


def hero(rng: Random) -> Character:
    """A hero."""
    return Character(pick(rng, "lexicon", "story_animals"), rng.choice(names()))


def _friend(rng: Random, main: Character) -> Character:
    """Another character with another name, of another kind."""
    friend = hero(rng)
    while friend.name == main.name or friend.kind == main.kind:
        friend = hero(rng)
    return friend


def _words(rng: Random, hero: Character, helper: str) -> dict[str, str]:
    he, him, his = pronouns(hero.name)
    drawn = {
        key: pick(rng, "stories", name) for key, name in (("item", "items"), ("hiding", "hiding"), ("time", "times"))
    }
    people = {"N": hero.name, "he": he, "him": him, "his": his, "H": helper}
    return drawn | people | {"He": capitalise(he), "His": capitalise(his)}


def _stranger(rng: Random, hero: Character) -> str:
    while hero.kind in (stranger := pick(rng, "stories", "strangers")).split():
        pass
    return stranger


def _introduced(rng: Random, opening: str, hero: Character) -> str:
    return f"{opening} {with_article(pick(rng, 'stories', 'adjectives'))} {hero.kind} named {hero.name}."


def short_story(rng: Random, hero: Character, friend: Character | None = None) -> str:
    """A story of about 50 words about the hero, with a named friend or an unnamed helper."""
    words = _words(rng, hero, friend.name if friend else _stranger(rng, hero))
    plot = pick(rng, "stories", "plots")
    parts = [_introduced(rng, "Once there was", hero)]
    if friend:
        parts.append(f"{words['His']} best friend was {with_article(friend.kind)} named {friend.name}.")
    return " ".join(parts + [sentence.format(**words) for sentence in plot[:4]])


def long_story(rng: Random, hero: Character) -> str:
    """A story of about 60 to 120 words for documents."""
    friend = _friend(rng, hero)
    words = _words(rng, hero, friend.name)
    plot = pick(rng, "stories", "plots")
    parts = [
        _introduced(rng, pick(rng, "stories", "openings"), hero),
        f"{words['He']} lived {pick(rng, 'stories', 'places')}.",
    ]
    if rng.random() < 0.8:
        parts.append(f"{hero.name} liked to {pick(rng, 'stories', 'hobbies')}.")
    how = rng.choice(("best ", "good ", ""))
    parts.append(f"{words['His']} {how}friend was {with_article(friend.kind)} named {friend.name}.")
    parts += [sentence.format(**words) for sentence in plot[: 4 + (rng.random() < 0.8)]]
    if rng.random() < 0.3:
        parts.append(f"After that, {hero.name} and {friend.name} liked to {pick(rng, 'stories', 'hobbies')} together.")
    return " ".join(parts)


def _describe(rng: Random, character: Character) -> str:
    """The way a request names a character."""
    kind, name = character
    return pick(rng, "stories", "who").format(a=with_article(kind), n=name, k=kind)


def _expect_story(hero: Character, friend: Character | None = None) -> Expect:
    """The characters that were asked for, no other name of the world, and no pronoun of the other kind."""
    asked = [character for character in (hero, friend) if character]
    own = [character.name for character in asked]
    wrong = ("she", "her") if pronouns(hero.name)[0] == "he" else ("he", "him", "his")
    return {
        "all": [*own, *(character.kind for character in asked)],
        "none": [*(name for name in names() if name not in own), *wrong],
        "min_words": 30,
    }


def _make(rng: Random) -> Turn:
    main = hero(rng)
    friend = None
    who = _describe(rng, main)
    if rng.random() < 0.3:
        friend = _friend(rng, main)
        who += f" and {_describe(rng, friend)}"
    question = decorate(rng, pick(rng, "stories", "requests").format(who=who), names_inside=True)
    return Turn("stories", story_key(main), question, short_story(rng, main, friend), _expect_story(main, friend))


def sample(rng: Random, split: str) -> Turn:
    """A request for a story about a named animal."""
    return draw(rng, split, _make)


def document(rng: Random, split: str) -> str:
    """A story whose hero belongs to the split."""
    while split_of(story_key(main := hero(rng))) != split:
        pass
    return long_story(rng, main)
