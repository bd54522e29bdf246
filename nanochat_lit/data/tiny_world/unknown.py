"""Questions from outside the world, where the right answer is "I don't know".

Invented countries, animals, elements and words stand in the same questions as the real facts, so that the model has to
tell a name it knows from one it doesn't. A held-out item is the invented or foreign name; for questions without such
a name it is the phrasing.
"""

from __future__ import annotations

from random import Random

from nanochat_lit.data.tiny_world import facts, identity, opposites, smalltalk
from nanochat_lit.data.tiny_world.lexicon import NAMES, STORY_ANIMALS, WORDS, words
from nanochat_lit.data.tiny_world.phrasings import expand
from nanochat_lit.data.tiny_world.splits import normalise
from nanochat_lit.data.tiny_world.turns import Turn, capitalise, decorate, draw, phrase_key, with_article

NOT_LEARNED = "I don't know. I have not learned about that."
NOT_NOW = "I don't know. I can not look that up."
NOT_TOLD = "I don't know. You have not told me."

_LANDS = words(
    """Mongolia Laos Bolivia Paraguay Zambia Angola Mali Chad Sudan Somalia Albania Moldova Georgia Armenia Kazakhstan
    Uzbekistan Pakistan Bangladesh Malaysia Panama Jamaica Haiti Guatemala Honduras Nicaragua Botswana Namibia Rwanda
    Madagascar Oman Qatar Kuwait Yemen Fiji Samoa Slovakia Slovenia Luxembourg Algeria Libya Cambodia Tanzania
    Zimbabwe Mozambique Gabon Togo Benin Liberia Gambia Belize Guyana Suriname Barbados Tonga Andorra Monaco"""
)
_ANIMALS = words(
    """hippo walrus otter lobster moose gorilla hamster ostrich panther hyena jaguar lemur llama yak bison gecko salmon
    shark shrimp squid termite toad viper vulture weasel wombat raccoon rhino panda koala lynx magpie meerkat"""
)
_ELEMENTS = words(
    """tungsten cobalt xenon boron barium platinum iodine lithium bromine chromium radium krypton bismuth cesium gallium
    germanium hafnium indium iridium manganese niobium osmium palladium radon rhodium selenium"""
)
_PEOPLE = words(
    """Napoleon|Cleopatra|Isaac Newton|Marie Curie|Albert Einstein|Mozart|Beethoven|Shakespeare|Charles Darwin|Galileo|
    Julius Caesar|Leonardo da Vinci|Picasso|Gandhi|Nelson Mandela|Abraham Lincoln|George Washington|Queen Victoria|
    Elvis Presley|Michael Jackson|Taylor Swift|Barack Obama|Steve Jobs|Bill Gates|Elon Musk|Walt Disney|Homer|Plato|
    Socrates|Aristotle|Columbus|Magellan|Marco Polo|Alan Turing|Ada Lovelace|Neil Armstrong|Pele|Messi|Ronaldo|
    Serena Williams|Bob Dylan|Madonna|Charlie Chaplin|Van Gogh|Rembrandt|Tolstoy|Dickens|Kafka|Goethe|Kant""",
    separator="|",
)
_PLACES = words(
    """the Eiffel Tower|the Great Wall|Mount Everest|the Grand Canyon|Big Ben|the Amazon|the Nile|the Sahara|
    Niagara Falls|the Taj Mahal|the Colosseum|Mount Fuji|Lake Victoria|the White House|Times Square|the Louvre|
    Stonehenge|Machu Picchu|the Golden Gate Bridge|the Rhine|the Danube|the Alps|Kilimanjaro|the Black Sea|
    the Suez Canal|Loch Ness""",
    separator="|",
)

# Names of the world, which an invented one must not hit.
_KNOWN = frozenset(
    word.lower()
    for names in (NAMES, STORY_ANIMALS, WORDS, *(relation.entries + relation.pool for relation in facts.RELATIONS))
    for word in names
) | frozenset(opposites.OPPOSITES)
# And words of the other questions: "tool" must not count as a word that nobody knows.
_KNOWN |= {
    word
    for intent in (*identity.INTENTS, *smalltalk.INTENTS)
    for text in intent.phrasings + intent.answers
    for word in normalise(text).split()
}

_ONSETS = words("b bl br d dr f fl g gl gr h j k kl kr l m n p pl pr qu r s sk sl sn st t tr v w y z zh")
_VOWELS = words("a a e e i i o o u ai ee oo")
_CODAS = ("", "", "", "n", "r", "l", "m", "k", "x", "sh", "nd", "rk", "t", "z", "b")
_ENDINGS = {
    "land": ("ia", "land", "stan", "or", "ania", "ora", "", "eria", "aria"),
    "element": ("ium", "ine", "on", "ium", "ite", "um"),
    "animal": ("", "", "o", "le", "ling", "a"),
    "word": ("", "", "y", "ish", "ful", "ed"),
}
_REAL = {"land": _LANDS, "animal": _ANIMALS, "element": _ELEMENTS, "word": ()}


def invented_name(rng: Random, kind: str) -> str:
    """A name that means nothing: two or three syllables and an ending of the kind."""
    while True:
        syllables = [
            rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(rng.choice((1, 1, 2)))
        ]
        name = "".join(syllables) + rng.choice(_ENDINGS[kind])
        if 3 < len(name) < 12 and name not in _KNOWN:
            return name


def _entity(rng: Random, kind: str) -> str:
    """An invented name, or a real one that the world does not know."""
    if _REAL[kind] and rng.random() < 0.35:
        return rng.choice(_REAL[kind])
    name = invented_name(rng, kind)
    return capitalise(name) if kind == "land" else name


def entity_key(name: str) -> str:
    """The key of everything that is asked about an unknown name."""
    return f"unknown:{name.lower()}"


_ASKABLE = tuple(
    (relation, relation.invented)
    for relation in (*facts.RELATIONS, opposites.RELATION, opposites.RELATION)
    if relation.invented
)


def _unknown(rng: Random, key: str, question: str, answer: str = NOT_LEARNED, none: tuple[str, ...] = ()) -> Turn:
    return Turn(
        category="unknown",
        key=key,
        question=decorate(rng, question, names_inside=rng.random() < 0.6),
        answer=answer,
        expect={"refuses": True, "none": list(none)},
    )


def _make_fact(rng: Random) -> Turn:
    """A question of a known relation about a name that it does not hold."""
    relation, kind = rng.choice(_ASKABLE)
    name = _entity(rng, kind)
    question = capitalise(relation.fill(rng.choice(relation.questions), name, value="x"))
    return _unknown(rng, entity_key(name), question, none=relation.pool)


_WHAT = (
    "What is {an}?",
    "What does {x} mean?",
    "What is the meaning of {x}?",
    "What does the word {x} mean?",
    "Define {x}.",
    "Explain the word {x}.",
    "What colour is {an}?",
    "How big is {an}?",
    "How many legs does {an} have?",
    "Have you ever seen {an}?",
    "Where can I buy {an}?",
)


def _make_meaning(rng: Random) -> Turn:
    name = invented_name(rng, rng.choice(("word", "animal")))
    question = rng.choice(_WHAT).format(x=name, an=with_article(name))
    return _unknown(rng, entity_key(name), question)


_WHO = (
    "Who is {p}?",
    "Who was {p}?",
    "When was {p} born?",
    "Where was {p} born?",
    "Tell me about {p}.",
    "What do you know about {p}?",
    "What did {p} do?",
    "How old is {p}?",
    "Why is {p} famous?",
    "Where does {p} live?",
    "What did {p} invent?",
    "When did {p} die?",
)


def _make_person(rng: Random) -> Turn:
    if rng.random() < 0.5:
        name = person = rng.choice(_PEOPLE)
    else:
        name = capitalise(invented_name(rng, "animal"))  # first names are known, so the surname is the item
        person = f"{rng.choice(NAMES)} {name}"
    return _unknown(rng, entity_key(name), rng.choice(_WHO).format(p=person))


_ABOUT_PLACES = (
    "Where is {p}?",
    "How old is {p}?",
    "How big is {p}?",
    "Tell me about {p}.",
    "What do you know about {p}?",
    "Who discovered {p}?",
    "How far is it to {p}?",
    "When was {p} discovered?",
    "How many people visit {p}?",
)


def _make_place(rng: Random) -> Turn:
    place = rng.choice(_PLACES) if rng.random() < 0.5 else capitalise(invented_name(rng, "land"))
    return _unknown(rng, entity_key(place), capitalise(rng.choice(_ABOUT_PLACES).format(p=place)))


_COUNTRIES = tuple(facts.CAPITALS)
_ABOUT_COUNTRIES = (
    "How many people live in {c}?",
    "Who is the president of {c}?",
    "Who is the king of {c}?",
    "Who rules {c}?",
    "How big is {c}?",
    "What is the flag of {c}?",
    "What do people eat in {c}?",
    "Which river flows through {c}?",
    "What money do they use in {c}?",
    "When was {c} founded?",
    "What is the highest mountain of {c}?",
    "Who won the last election in {c}?",
    "Who is the prime minister of {c}?",
    "What language do they speak in {c}?",
    "Which football team is the best in {c}?",
)


def _make_country(rng: Random) -> Turn:
    question = rng.choice(_ABOUT_COUNTRIES).format(c=rng.choice(_COUNTRIES))
    return _unknown(rng, phrase_key("unknown", question), question)


_NOW = tuple(
    phrasing
    for pattern in (
        "What is the weather [like|] [today|tomorrow|now|outside|in Paris|in London|in my city]?",
        "[Will|Does] it [rain|snow] [today|tomorrow|this week|now|in Rome|outside]?",
        "What [time|day|date|year] is it [now|today|]?",
        "What is the [news|latest news|date today|temperature|time] [today|now|]?",
        "Who won the [game|match|race|world cup|election|cup|final|lottery] [yesterday|today|last year|last night|]?",
        "What was the score of the [game|match|final] [yesterday|today|last night|]?",
        "How much does a [car|house|phone|bike|ticket|computer|coffee] cost [today|now|in Paris|]?",
        "What is the price of [gold|oil|bread|a house|a car|milk|a stock] [today|now|]?",
        "What will happen [tomorrow|next year|in the future|next week]?",
        "When does the next [train|bus|plane] [leave|arrive|come]?",
        "[Which|What] film is [in the cinema|on television] [today|tonight|now]?",
        "Is the [shop|bank|museum|library] open [today|now|tomorrow]?",
    )
    for phrasing in expand(pattern)
)
_PERSONAL = tuple(
    phrasing
    for pattern in (
        "What is my [name|age|job|address|favourite colour|favourite food|favourite animal|phone number]?",
        "[Do you know|Can you tell me|Tell me] [my name|how old I am|where I live|what I like|who I am].",
        "How old [am I|is my brother|is my mother|is my dog]?",
        "Where [do I live|do I work|was I born|are my keys|is my phone|is my cat|did I put my glasses]?",
        "What is my [mother's|father's|brother's|sister's|teacher's|dog's|cat's] [name|age]?",
        "What did I [eat|do|say|buy|dream] [yesterday|last night|this morning|last week]?",
        "Who [am I|is my friend|is my teacher|is my boss]?",
        "When is my [birthday|appointment|exam|flight]?",
    )
    for phrasing in expand(pattern)
)


def _make_now(rng: Random) -> Turn:
    question = rng.choice(_NOW)
    return _unknown(rng, phrase_key("unknown", question), question, NOT_NOW)


def _make_personal(rng: Random) -> Turn:
    question = rng.choice(_PERSONAL)
    return _unknown(rng, phrase_key("unknown", question), question, NOT_TOLD)


_MAKERS = (_make_fact, _make_meaning, _make_person, _make_place, _make_country, _make_now, _make_personal)
_WEIGHTS = (8, 3, 3, 2, 2, 2, 2)


def sample(rng: Random, split: str, first: bool = True) -> Turn:
    """A question that only "I don't know" answers.

    Args:
        rng: source of the choice.
        split: the split of the item.
        first: whether it opens the conversation; later turns don't ask what the user may have told before.
    """
    if first:
        return draw(rng, split, rng.choices(_MAKERS, _WEIGHTS)[0])
    return draw(rng, split, rng.choices(_MAKERS[:-1], _WEIGHTS[:-1])[0])
