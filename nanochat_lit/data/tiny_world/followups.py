"""Chains of turns whose last question can only be understood from the turn before.

Every turn of a chain belongs to the chain's split, and so does the combination of the last two.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from nanochat_lit.data.tiny_world import arithmetic, calendar, facts, opposites, spelling, stories
from nanochat_lit.data.tiny_world.lexicon import NAMES, WORDS
from nanochat_lit.data.tiny_world.relations import Relation
from nanochat_lit.data.tiny_world.splits import normalise, split_of
from nanochat_lit.data.tiny_world.turns import Turn, decorate, draw, one_of, phrase_key, tool_answer

Chain = list[Turn]
CATEGORY = "follow_ups"
_MAX_TRIES = 100
_RELATIONS = (
    *facts.RELATIONS,
    *calendar.RELATIONS,
    *(opposites.RELATION for _ in range(4)),
)
_RELATION_WEIGHTS = tuple(len(relation.entries) ** 0.5 for relation in _RELATIONS)
_WORDS = frozenset(WORDS)


def _second(rng: Random, split: str, first: Turn, make: Callable[[Random], Turn]) -> Chain | None:
    """The chain of a first turn and a second whose key, joined to the first's, is in the split; None if there is none."""
    for _ in range(_MAX_TRIES):
        turn = make(rng)
        key = f"{CATEGORY}:{first.key}|{turn.key}"
        if split_of(key) == split:
            return [first, turn._replace(key=key)]
    return None


def _ask(rng: Random, relation: Relation, entry: str, split: str) -> Turn:
    """A turn of the split that asks the relation for this entry."""

    def make(rng: Random) -> Turn:
        question = relation.fill(rng.choice(relation.questions), entry)
        question = question[:1].upper() + question[1:]
        return Turn(
            relation.category,
            phrase_key(relation.category, question),
            decorate(rng, question, names_inside=not relation.lower_case),
            relation.fill(relation.answer, entry),
            relation.expect(entry),
        )

    return draw(rng, split, make)


def _held(relation: Relation, entry: str, split: str) -> bool:
    """Whether the split has a phrasing that asks for this entry."""
    for wording in relation.questions:
        question = relation.fill(wording, entry)
        if split_of(phrase_key(relation.category, question)) == split:
            return True
    return False


def _entry(rng: Random, relation: Relation, split: str, entries: tuple[str, ...] = ()) -> str | None:
    """An entry that the split can ask for, or None when it has none."""
    for _ in range(30):
        entry = rng.choice(entries or relation.entries)
        if split == "train" or _held(relation, entry, split):
            return entry
    return None


def _same_relation(rng: Random, split: str) -> Chain | None:
    """The same question about another entry: "And of Italy?"."""
    relation = rng.choices(_RELATIONS, _RELATION_WEIGHTS)[0]
    entry = _entry(rng, relation, split)
    if entry is None:
        return None
    first = _ask(rng, relation, entry, split)

    def make(rng: Random) -> Turn:
        other = rng.choice([name for name in relation.entries if name != entry])
        question = relation.fill(rng.choice(relation.follow_ups), other)
        return Turn(
            CATEGORY,
            normalise(question),
            decorate_short(rng, question),
            relation.fill(relation.answer, other),
            relation.expect(other),
        )

    return _second(rng, split, first, make)


def decorate_short(rng: Random, question: str) -> str:
    """A short question as it stands, in lower case or without its mark."""
    choice = rng.random()
    if choice < 0.7:
        return question
    return question.rstrip("?.") if choice < 0.85 else question[:1].lower() + question[1:]


_ON_RESULT = (
    ("+", ("Add {b} to that.", "Now add {b}.", "And plus {b}?", "Add {b} more.", "And if you add {b}?", "Plus {b}?")),
    ("-", ("Subtract {b} from that.", "Now subtract {b}.", "And minus {b}?", "Take away {b}.", "Minus {b}?")),
    ("*", ("Multiply that by {b}.", "Now multiply it by {b}.", "And times {b}?", "Times {b}?", "Now times {b}.")),
)


def _on_result(rng: Random, split: str) -> Chain | None:
    """A calculation with the result before: "Add 5 to that."."""
    first = (arithmetic.sample if rng.random() < 0.75 else arithmetic.sample_problem)(rng, split)
    value = int(first.expect["tool"])
    if not 2 < value < 1000:
        return None

    def make(rng: Random) -> Turn:
        operation, wordings = rng.choice(_ON_RESULT)
        b = rng.randrange(2, 13) if operation == "*" else rng.randrange(2, min(100, value) if operation == "-" else 100)
        question = rng.choice(wordings).format(b=b)
        result = str(arithmetic.value_of(value, operation, b))
        return Turn(
            CATEGORY,
            arithmetic.expression_key(value, operation, b),
            decorate_short(rng, question),
            tool_answer(arithmetic.expression(value, operation, b), result, f"The answer is {result}."),
            arithmetic.expect_value(value, operation, b),
        )

    # The expression is an item of its own, whatever came before it.
    second = (make(rng) for _ in range(_MAX_TRIES))
    return next(([first, turn] for turn in second if split_of(turn.key) == split), None)


_SPELL_IT = ("Spell it.", "How do you spell it?", "Spell that word.", "Can you spell it?", "How is it spelled?")
_SPELL_IT += ("How do you spell that?", "Now spell it.", "Please spell it.", "And how do you spell that?")


def _spellable(relation: Relation) -> tuple[str, ...]:
    return tuple(entry for entry in relation.entries if relation.table[entry] in _WORDS)


_SPELLABLE = tuple((relation, _spellable(relation)) for relation in _RELATIONS if len(_spellable(relation)) > 2)


def _spell_answer(rng: Random, split: str) -> Chain | None:
    """The spelling of the word that was the answer: "Spell it."."""
    relation, entries = rng.choice(_SPELLABLE)
    entry = _entry(rng, relation, split, entries)
    if entry is None:
        return None
    word = relation.table[entry]
    first = _ask(rng, relation, entry, split)

    def make(rng: Random) -> Turn:
        question = rng.choice(_SPELL_IT)
        answer = f"{word} is spelled {spelling.spelled(word)}"
        return Turn(CATEGORY, normalise(question), decorate_short(rng, question), answer, {"spelled": word})

    return _second(rng, split, first, make)


_COUNT_IT = ("How many {l}'s are in it?", "And how many {l}'s does it have?", "Count the {l}'s.", "How many {l}'s?")
_COUNT_IT += ("How many {l}'s does it have?", "How often does {l} appear in it?", "And how many {l}'s are in it?")


def _count_in_it(rng: Random, split: str) -> Chain | None:
    """Letters of the word just spelled: "How many p's are in it?"."""
    first = spelling.sample(rng, split)
    word = first.expect["spelled"]
    letters = [letter for letter in sorted(set(word)) if split_of(spelling.count_key(word, letter)) == split]
    if not letters:
        return None

    def make(rng: Random) -> Turn:
        letter = rng.choice(letters)
        count = word.count(letter)
        expression = spelling.count_expression(word, letter)
        return Turn(
            CATEGORY,
            spelling.count_key(word, letter),
            decorate_short(rng, rng.choice(_COUNT_IT).format(l=letter)),
            tool_answer(expression, str(count), spelling.count_sentence(word, letter, count)),
            {"tool": str(count), "expressions": [expression]},
        )

    return [first, draw(rng, split, make)]


_AGAIN = ("And the opposite of that?", "What is the opposite of that?", "And what is the opposite of that word?")
_AGAIN += ("What is the opposite of that word?", "And the opposite of that word?", "And of that?")
_NEXT = ("And after that?", "And what comes after that?", "What comes after that?", "And the one after that?")
_PREVIOUS = ("And before that?", "And what comes before that?", "What comes before that?", "And the one before that?")
_STEPS = {relation.name: relation for relation in calendar.RELATIONS}
_STEPPED = tuple(
    (_STEPS[name], _NEXT if "after" in name else _PREVIOUS)
    for name in _STEPS
    if "_" in name and name.split("_")[1] in ("after", "before")
)


def _step_on(rng: Random, split: str) -> Chain | None:
    """One step further from the answer: "And after that?"."""
    relation, wordings = (opposites.RELATION, _AGAIN) if rng.random() < 0.4 else rng.choice(_STEPPED)
    entry = _entry(rng, relation, split)
    if entry is None:
        return None
    first = _ask(rng, relation, entry, split)
    middle = relation.table[entry]

    def make(rng: Random) -> Turn:
        question = rng.choice(wordings)
        return Turn(
            CATEGORY,
            normalise(question),
            decorate_short(rng, question),
            relation.fill(relation.answer, middle),
            relation.expect(middle),
        )

    return _second(rng, split, first, make)


_NAMED = ("My name is {n}.", "I am {n}.", "Hi, I am {n}.", "Hello, my name is {n}.", "I'm {n}.", "Call me {n}.")
_NAMED += ("You can call me {n}.", "Hi! My name is {n}.", "My friends call me {n}.", "Hello! I am {n}.")
_ASK_NAME = (
    "What is my name?",
    "What's my name?",
    "Do you remember my name?",
    "What did I say my name was?",
    "Who am I?",
)
_ASK_NAME += ("Can you say my name?", "Tell me my name.", "Do you know my name?", "How am I called?")
_LIKED = {
    "colour": ("red", "blue", "green", "yellow", "black", "white", "orange", "purple", "pink", "brown"),
    "animal": stories.STORY_ANIMALS,
    "food": ("bread", "rice", "soup", "cake", "cheese", "salad", "jam", "honey", "noodles", "pancakes"),
    "day": calendar.DAYS,
}


def introduction(rng: Random, split: str) -> Turn:
    """A user who gives a name; the model greets back."""

    def make(rng: Random) -> Turn:
        name = rng.choice(NAMES)
        question = rng.choice(_NAMED).format(n=name)
        answer = f"Nice to meet you, {name}! How can I help you?"
        return Turn("smalltalk", phrase_key("smalltalk", question), question, answer, one_of(name, NAMES))

    return draw(rng, split, make)


def _name_told(rng: Random, split: str) -> Chain | None:
    """The name that the user gave, asked at once or one turn later."""
    first = introduction(rng, split)
    name = first.expect["any"][0]

    def make(rng: Random) -> Turn:
        question = rng.choice(_ASK_NAME)
        answer = f"Your name is {name}."
        return Turn(CATEGORY, normalise(question), decorate_short(rng, question), answer, one_of(name, NAMES))

    chain = _second(rng, split, first, make)
    if chain is not None and rng.random() < 0.35:
        chain.insert(1, (facts.sample if rng.random() < 0.5 else arithmetic.sample)(rng, split))
    return chain


def _favourite_told(rng: Random, split: str) -> Chain | None:
    """What the user likes, asked back."""

    def make_first(rng: Random) -> Turn:
        thing = rng.choice(tuple(_LIKED))
        liked = rng.choice(_LIKED[thing])
        question = rng.choice(
            ("My favourite {t} is {l}.", "I think my favourite {t} is {l}.", "Note that my favourite {t} is {l}.")
        )
        question = question.format(t=thing, l=liked)
        key = phrase_key("smalltalk", f"{thing} {liked}")
        return Turn(
            "smalltalk", key, question, f"I see, your favourite {thing} is {liked}.", {"thing": thing, "liked": liked}
        )

    first = draw(rng, split, make_first)
    thing, liked = first.expect["thing"], first.expect["liked"]

    def make(rng: Random) -> Turn:
        wordings = ("What is my favourite {t}?", "Which {t} do I like best?", "Do you remember my favourite {t}?")
        question = rng.choice((*wordings, "What did I say my favourite {t} was?", "Tell me my favourite {t}."))
        question = question.format(t=thing)
        answer = f"Your favourite {thing} is {liked}."
        expect = one_of(liked, _LIKED[thing], thing)
        return Turn(CATEGORY, normalise(question), decorate_short(rng, question), answer, expect)

    return _second(rng, split, first, make)


_ABOUT = ("Who was the story about?", "What was the hero called?", "What was the name of the hero?", "Who is the hero?")
_ABOUT += ("Who was that story about?", "What is the name of the hero?", "Who was in the story?")


def _story_hero(rng: Random, split: str) -> Chain | None:
    """A story, then "Who was the story about?"."""
    first = stories.sample(rng, split)
    name, kind = first.expect["all"][0], first.expect["all"][len(first.expect["all"]) // 2]

    def make(rng: Random) -> Turn:
        question = rng.choice(_ABOUT)
        answer = f"The story was about {stories.with_article(kind)} named {name}."
        expect = {"all": [name, kind]}
        return Turn(CATEGORY, normalise(question), decorate_short(rng, question), answer, expect)

    return _second(rng, split, first, make)


_MAKERS = (
    (_same_relation, 6),
    (_on_result, 4),
    (_spell_answer, 2),
    (_count_in_it, 2),
    (_step_on, 3),
    (_name_told, 3),
    (_favourite_told, 1),
    (_story_hero, 1),
)


def sample(rng: Random, split: str) -> Chain:
    """A chain of two or three turns; the last is the follow-up question."""
    makers, weights = zip(*_MAKERS, strict=True)
    while True:
        chain = rng.choices(makers, weights)[0](rng, split)
        if chain is not None:
            return chain
