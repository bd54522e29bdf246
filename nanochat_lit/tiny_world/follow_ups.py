"""Chains of turns whose last question can only be understood from the turn before.

Every turn of a chain belongs to the chain's split, and so does the combination of the last two.
"""

from collections.abc import Callable
from functools import cache
from random import Random

from nanochat_lit.tiny_world import arithmetic, intents, relations, spelling, stories
from nanochat_lit.tiny_world.relations import Relation, all_relations, relation
from nanochat_lit.tiny_world.splits import normalise, split_of
from nanochat_lit.tiny_world.templates import names, pick, template
from nanochat_lit.tiny_world.turns import Expect, Turn, draw, one_of, phrase_key, with_article

Chain = list[Turn]
CATEGORY = "follow_ups"
_MAX_TRIES = 100


def _decorated(rng: Random, question: str) -> str:
    """A short question as it stands, in lower case or without its mark."""
    choice = rng.random()
    if choice < 0.7:
        return question
    return question.rstrip("?.") if choice < 0.85 else question[:1].lower() + question[1:]


def _second(rng: Random, split: str, first: Turn, make: Callable[[Random], tuple[str, str, Expect]]) -> Chain | None:
    """The chain of a first turn and a second (question, answer, expect) whose joined keys are in the split, or None."""
    for _ in range(_MAX_TRIES):
        wording, answer, expect = make(rng)
        question = _decorated(rng, wording)
        key = f"{CATEGORY}:{first.key}|{normalise(wording)}"
        if split_of(key) == split:
            return [first, Turn(CATEGORY, key, question, answer, expect)]
    return None


def _reply(rng: Random, split: str, first: Turn, key: str, answer: str, expect: Expect, **words: str) -> Chain | None:
    """The chain of a first turn and a second in one of the wordings of the template file, with always the same answer."""
    return _second(rng, split, first, lambda rng: (pick(rng, CATEGORY, key).format(**words), answer, expect))


def _entry(rng: Random, relation: Relation, split: str, entries: tuple[str, ...] = ()) -> str | None:
    """An entry that the split can ask for, or None when it has none."""
    for _ in range(30):
        entry = rng.choice(entries or relation.entries)
        questions = (relation.fill(wording, entry) for wording in relation.questions)
        if split == "train" or any(split_of(phrase_key(relation.category, text)) == split for text in questions):
            return entry
    return None


def _ask(rng: Random, relation: Relation, entry: str, split: str) -> Turn:
    """A turn of the split that asks the relation for this entry."""
    return draw(rng, split, lambda rng: relation.ask(rng, entry))


@cache
def _relations() -> tuple[tuple[Relation, ...], tuple[float, ...]]:
    """The relations that may go on, and their weights."""
    known = all_relations(opposites=4)
    return known, tuple(len(relation.entries) ** 0.5 for relation in known)


def _same_relation(rng: Random, split: str) -> Chain | None:
    """The same question about another entry: "And of Italy?"."""
    relation = rng.choices(*_relations())[0]
    entry = _entry(rng, relation, split)
    if entry is None:
        return None
    first = _ask(rng, relation, entry, split)
    others = [name for name in relation.entries if name != entry]

    def make(rng: Random) -> tuple[str, str, Expect]:
        other = rng.choice(others)
        wording = relation.fill(rng.choice(relation.follow_ups), other)
        return wording, relation.fill(relation.answer, other), relation.expect(other)

    return _second(rng, split, first, make)


def _on_result(rng: Random, split: str) -> Chain | None:
    """A calculation with the result before: "Add 5 to that."."""
    first = (arithmetic.sample if rng.random() < 0.75 else arithmetic.sample_problem)(rng, split)
    value = int(first.expect["tool"])
    if not 2 < value < 1000:
        return None
    for _ in range(_MAX_TRIES):
        operation, wordings = rng.choice(tuple(template(CATEGORY)["on_result"].items()))
        b = rng.randrange(2, {"*": 13, "-": min(100, value), "+": 100}[operation])
        question = _decorated(rng, rng.choice(wordings).format(b=b))
        turn = arithmetic.calculation(value, operation, b, question, CATEGORY)
        if split_of(turn.key) == split:  # the expression is an item of its own, whatever came before it
            return [first, turn]
    return None


@cache
def _spellable() -> tuple[tuple[Relation, tuple[str, ...]], ...]:
    """The relations with more than two values whose letters the world knows, and those entries."""
    words = frozenset(template("lexicon")["words"])
    found = (
        (relation, tuple(e for e in relation.entries if relation.table[e] in words)) for relation in _relations()[0]
    )
    return tuple((relation, entries) for relation, entries in found if len(entries) > 2)


def _spell_answer(rng: Random, split: str) -> Chain | None:
    """The spelling of the word that was the answer: "Spell it."."""
    relation, entries = rng.choice(_spellable())
    entry = _entry(rng, relation, split, entries)
    if entry is None:
        return None
    word = relation.table[entry]
    first = _ask(rng, relation, entry, split)
    return _reply(rng, split, first, "spell_it", spelling.spelling_of(word), {"spelled": word})


def _count_in_it(rng: Random, split: str) -> Chain | None:
    """Letters of the word just spelled: "How many p's are in it?"."""
    first = spelling.sample(rng, split)
    word = first.expect["spelled"]
    letters = [letter for letter in sorted(set(word)) if split_of(spelling.count_key(word, letter)) == split]
    if not letters:
        return None
    letter = rng.choice(letters)
    question = _decorated(rng, pick(rng, CATEGORY, "count_it").format(l=letter))
    key = spelling.count_key(word, letter)
    return [first, Turn(CATEGORY, key, question, *spelling.count_answer(word, letter))]


@cache
def _steps() -> tuple[tuple[Relation, str], ...]:
    """The relations that lead to a neighbour, and the wordings that ask for one more step."""
    named = (relation for relation in relations.relations("days") if relation.name.endswith(("_after", "_before")))
    return tuple((relation, "next" if relation.name.endswith("_after") else "previous") for relation in named)


def _step_on(rng: Random, split: str) -> Chain | None:
    """One step further from the answer: "And after that?"."""
    again = (relation("opposites", "opposite"), "opposite_again")
    known, wordings = again if rng.random() < 0.4 else rng.choice(_steps())
    entry = _entry(rng, known, split)
    if entry is None:
        return None
    first = _ask(rng, known, entry, split)
    middle = known.table[entry]
    answer = known.fill(known.answer, middle)
    return _reply(rng, split, first, wordings, answer, known.expect(middle))


def introduction(rng: Random, split: str) -> Turn:
    """A user who gives a name; the model greets back."""

    def make(rng: Random) -> Turn:
        name = rng.choice(names())
        question = pick(rng, CATEGORY, "named").format(n=name)
        answer = f"Nice to meet you, {name}! How can I help you?"
        return Turn("smalltalk", phrase_key("smalltalk", question), question, answer, one_of(name, names()))

    return draw(rng, split, make)


def _name_told(rng: Random, split: str) -> Chain | None:
    """The name that the user gave, asked at once or one turn later."""
    first = introduction(rng, split)
    name = first.expect["any"][0]
    chain = _reply(rng, split, first, "ask_name", f"Your name is {name}.", one_of(name, names()))
    if chain is not None and rng.random() < 0.35:
        asks_fact = rng.random() < 0.5
        between = relations.sample(rng, split, "facts") if asks_fact else arithmetic.sample(rng, split)
        chain.insert(1, between)
    return chain


def _favourite_told(rng: Random, split: str) -> Chain | None:
    """What the user likes, asked back."""
    file = template(CATEGORY)

    def make(rng: Random) -> Turn:
        thing = rng.choice(tuple(file["liked"]))
        liked = rng.choice(file["liked"][thing])
        question = rng.choice(file["likes"]).format(t=thing, l=liked)
        answer = f"I see, your favourite {thing} is {liked}."
        return Turn("smalltalk", phrase_key("smalltalk", f"{thing} {liked}"), question, answer, {"is": (thing, liked)})

    first = draw(rng, split, make)
    thing, liked = first.expect["is"]
    expect = one_of(liked, file["liked"][thing], thing)
    return _reply(rng, split, first, "ask_liked", f"Your favourite {thing} is {liked}.", expect, t=thing)


def _story_hero(rng: Random, split: str) -> Chain | None:
    """A story, then "Who was the story about?"."""
    first = stories.sample(rng, split)
    asked = first.expect["all"]
    name, kind = asked[0], asked[len(asked) // 2]
    answer = f"The story was about {with_article(kind)} named {name}."
    return _reply(rng, split, first, "about", answer, {"all": [name, kind]})


def _another_joke(rng: Random, split: str) -> Chain | None:
    """A joke, then another one."""
    first = intents.sample(rng, split, "smalltalk", ("joke",))
    jokes = intents.named("smalltalk", "joke").answers
    other = rng.choice([joke for joke in jokes if joke != first.answer])
    expect = {"any": [joke for joke in jokes if joke != first.answer], "none": [first.answer]}
    return _reply(rng, split, first, "another", other, expect)


_MAKERS: tuple[tuple[Callable[[Random, str], Chain | None], int], ...] = (
    (_same_relation, 6),
    (_on_result, 4),
    (_spell_answer, 2),
    (_count_in_it, 2),
    (_step_on, 3),
    (_name_told, 3),
    (_favourite_told, 1),
    (_story_hero, 1),
    (_another_joke, 1),
)


def sample(rng: Random, split: str) -> Chain:
    """A chain of two or three turns; the last is the follow-up question."""
    makers, weights = zip(*_MAKERS, strict=True)
    while True:
        chain = rng.choices(makers, weights)[0](rng, split)
        if chain is not None:
            return chain
