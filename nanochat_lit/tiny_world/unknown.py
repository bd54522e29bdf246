"""Questions from outside the world, where the right answer is "I don't know".

Invented countries, animals, elements and words stand in the same questions as the real facts, so that the model has to
tell a name it knows from one it doesn't. A held-out item is the invented or foreign name; for questions without such
a name it is the phrasing.
"""

from functools import cache
from random import Random

from nanochat_lit.tiny_world.intents import intents, phrasings
from nanochat_lit.tiny_world.relations import all_relations, relation
from nanochat_lit.tiny_world.splits import normalise, split_of
from nanochat_lit.tiny_world.templates import names, pick, template, template_names
from nanochat_lit.tiny_world.turns import Turn, capitalise, decorate, draw, phrase_key, with_article


@cache
def _known() -> frozenset[str]:
    """Names and words of the world, which an invented name must not hit."""
    lexicon = template("lexicon")
    of_relations = (relation.entries + relation.pool for relation in all_relations())
    lists = (names(), lexicon["story_animals"], lexicon["words"], *of_relations)
    spoken = {
        word
        for category in template_names("intents")
        for intent in intents(category)
        for text in (*intent.phrasings, *intent.answers)
        for word in normalise(text).split()
    }
    return frozenset(word.lower() for words in lists for word in words) | spoken


def _blend(rng: Random) -> str:
    """The beginning of a word and the end of another: real names, too, begin and end as words do that mean other things."""
    first, second = rng.sample(template("lexicon")["words"], 2)
    return first[: rng.randrange(2, 5)] + second[-rng.randrange(2, 5) :]


def _syllables(rng: Random, kind: str) -> str:
    """One or two syllables and an ending of the kind."""
    parts = [pick(rng, "unknown", part) for _ in range(rng.choice((1, 1, 2))) for part in ("onsets", "vowels", "codas")]
    return "".join(parts) + rng.choice(template("unknown")["endings"][kind])


def invented_name(rng: Random, kind: str) -> str:
    """A name that means nothing."""
    while True:
        name = _blend(rng) if rng.random() < 0.35 else _syllables(rng, kind)
        if 3 < len(name) < 12 and name not in _known():
            return name


def name_key(name: str) -> str:
    """The key of an invented name, which is the same wherever the name stands."""
    return f"unknown:{name.lower()}"


def new_name(rng: Random, split: str) -> str:
    """An invented name of a person that belongs to the split."""
    while True:
        name = capitalise(invented_name(rng, "animal"))
        if split_of(name_key(name)) == split:
            return name


def _entity(rng: Random, kind: str) -> str:
    """An invented name, or a real one that the world does not know."""
    real = template("unknown")["real"][kind]
    if real and rng.random() < 0.35:
        return rng.choice(real)
    name = invented_name(rng, kind)
    return capitalise(name) if kind == "land" else name


def _unknown(rng: Random, name: str, question: str, answer: str = "not_learned", none: tuple[str, ...] = ()) -> Turn:
    """A turn about an unknown name; without one, the phrasing is the item."""
    return Turn(
        category="unknown",
        key=name_key(name) if name else phrase_key("unknown", question),
        question=decorate(rng, question, names_inside=rng.random() < 0.6),
        answer=template("unknown")["answers"][answer],
        expect={"refuses": True, "none": list(none)},
    )


@cache
def _askable() -> tuple:
    return tuple(relation for relation in all_relations(opposites=2) if relation.invented)


def _make_fact(rng: Random) -> Turn:
    """A question of a known relation about a name that it does not hold."""
    relation = rng.choice(_askable())
    name = _entity(rng, relation.invented)
    question = capitalise(relation.fill(rng.choice(relation.questions), name, value="x"))
    return _unknown(rng, name, question, none=relation.pool)


def _make_meaning(rng: Random) -> Turn:
    name = invented_name(rng, rng.choice(("word", "animal")))
    return _unknown(rng, name, pick(rng, "unknown", "what").format(x=name, an=with_article(name)))


def _make_person(rng: Random) -> Turn:
    if rng.random() < 0.5:
        name = person = pick(rng, "unknown", "people")
    else:
        name = capitalise(invented_name(rng, "animal"))  # first names are known, so the surname is the item
        person = f"{rng.choice(names())} {name}"
    return _unknown(rng, name, pick(rng, "unknown", "who").format(p=person))


def _make_place(rng: Random) -> Turn:
    place = pick(rng, "unknown", "places") if rng.random() < 0.5 else capitalise(invented_name(rng, "land"))
    return _unknown(rng, place, capitalise(pick(rng, "unknown", "about_places").format(p=place)))


def _make_country(rng: Random) -> Turn:
    wording = pick(rng, "unknown", "about_countries")
    return _unknown(rng, "", wording.format(c=rng.choice(relation("facts", "capital").entries)))


def _make_topic(rng: Random) -> Turn:
    topic, language = pick(rng, "unknown", "topics"), pick(rng, "unknown", "foreign")
    return _unknown(rng, topic, capitalise(pick(rng, "unknown", "about_topics").format(t=topic, l=language)))


def _make_now(rng: Random) -> Turn:
    return _unknown(rng, "", rng.choice(phrasings("unknown", "now")), "not_now")


def _make_personal(rng: Random) -> Turn:
    return _unknown(rng, "", rng.choice(phrasings("unknown", "personal")), "not_told")


_MAKERS = (_make_fact, _make_meaning, _make_person, _make_place, _make_country, _make_topic, _make_now, _make_personal)
_WEIGHTS = (8, 3, 3, 2, 2, 8, 2, 2)


def sample(rng: Random, split: str, first: bool = True) -> Turn:
    """A question that only "I don't know" answers.

    Turns after the `first` of a conversation don't ask what the user may have told before.
    """
    count = len(_MAKERS) if first else len(_MAKERS) - 1
    return draw(rng, split, rng.choices(_MAKERS[:count], _WEIGHTS[:count])[0])
