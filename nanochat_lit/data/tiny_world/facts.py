"""World facts: capitals, colours, animals, chemical symbols, planets and what things are for."""

from __future__ import annotations

from random import Random

from nanochat_lit.data.tiny_world.relations import Relation, swapped
from nanochat_lit.data.tiny_world.turns import Turn, draw


def _pairs(text: str, separator: str = " ") -> dict[str, str]:
    """A table from "entry value, entry value"; an underscore stands for a space inside a name."""
    table = {}
    for pair in text.replace("\n", " ").split(","):
        entry, value = pair.strip().split(separator)
        table[entry.replace("_", " ")] = value.replace("_", " ")
    return table


CAPITALS = _pairs(
    """France Paris, Italy Rome, Spain Madrid, Portugal Lisbon, Germany Berlin, Austria Vienna, Poland Warsaw,
    Hungary Budapest, Greece Athens, Norway Oslo, Sweden Stockholm, Finland Helsinki, Denmark Copenhagen,
    Ireland Dublin, Belgium Brussels, Iceland Reykjavik, Russia Moscow, Ukraine Kyiv, Romania Bucharest,
    Bulgaria Sofia, Croatia Zagreb, Serbia Belgrade, Switzerland Bern, Turkey Ankara, Egypt Cairo, Kenya Nairobi,
    Ghana Accra, Nigeria Abuja, Morocco Rabat, Tunisia Tunis, Senegal Dakar, Uganda Kampala, China Beijing,
    Japan Tokyo, India New_Delhi, Nepal Kathmandu, Thailand Bangkok, Vietnam Hanoi, Indonesia Jakarta, Iran Tehran,
    Iraq Baghdad, Lebanon Beirut, Canada Ottawa, Mexico Mexico_City, Cuba Havana, Peru Lima, Chile Santiago,
    Brazil Brasilia, Argentina Buenos_Aires, Colombia Bogota, Ecuador Quito, Uruguay Montevideo, Venezuela Caracas,
    Australia Canberra, New_Zealand Wellington, Estonia Tallinn, Latvia Riga, Lithuania Vilnius, Cyprus Nicosia,
    Malta Valletta"""
)

COLOURS = _pairs(
    """the_sky blue, grass green, snow white, coal black, blood red, a_lemon yellow, a_banana yellow, a_tomato red,
    a_carrot orange, a_pumpkin orange, milk white, a_crow black, a_swan white, the_sun yellow, a_cherry red,
    a_strawberry red, a_frog green, a_cucumber green, chocolate brown, a_flamingo pink, an_elephant grey, a_mouse grey,
    a_violet purple, an_aubergine purple, the_sea blue, a_lime green, a_polar_bear white, a_bear brown, a_pig pink,
    a_canary yellow"""
)

SOUNDS = _pairs(
    """cow moo, dog woof, cat meow, sheep baa, duck quack, pig oink, horse neigh, lion roar, snake hiss, bee buzz,
    owl hoot, mouse squeak, frog croak, donkey hee-haw, wolf howl, bear growl, crow caw, turkey gobble, goose honk,
    hen cluck, dove coo, cricket chirp"""
)

YOUNG = _pairs(
    """cow calf, dog puppy, cat kitten, sheep lamb, duck duckling, pig piglet, horse foal, lion cub, owl owlet,
    goose gosling, hen chick, goat kid, frog tadpole, deer fawn, kangaroo joey, swan cygnet, eagle eaglet, seal pup,
    butterfly caterpillar, fish fry"""
)

HOMES = _pairs(
    """dog kennel, bird nest, bee hive, horse stable, spider web, rabbit burrow, bear den, pig sty, cow barn, hen coop,
    ant anthill, beaver lodge, bat cave, mole tunnel, snail shell, camel desert, monkey jungle, whale ocean"""
)

LEGS = _pairs(
    """cow four, dog four, horse four, cat four, spider eight, bee six, ant six, butterfly six, hen two, duck two,
    owl two, snake no, worm no, fish no, crab ten, lion four, mouse four, swan two"""
)

SYMBOLS = _pairs(
    """hydrogen H, helium He, carbon C, nitrogen N, oxygen O, sodium Na, magnesium Mg, aluminium Al, silicon Si,
    phosphorus P, sulfur S, chlorine Cl, potassium K, calcium Ca, iron Fe, nickel Ni, copper Cu, zinc Zn, silver Ag,
    tin Sn, gold Au, mercury Hg, lead Pb, neon Ne, argon Ar, uranium U"""
)

PLANETS = _pairs(
    """first Mercury, second Venus, third Earth, fourth Mars, fifth Jupiter, sixth Saturn, seventh Uranus,
    eighth Neptune"""
)

USES = _pairs(
    """a_knife=cutting, a_pen=writing, a_spoon=eating_soup, a_broom=sweeping, a_hammer=hitting_nails, a_key=opening_a_lock,
    an_umbrella=keeping_dry, a_clock=telling_the_time, a_bed=sleeping, an_oven=baking, a_needle=sewing,
    a_towel=drying, a_lamp=giving_light, a_boat=crossing_water, a_cup=drinking, a_ladder=climbing, a_brush=painting,
    soap=washing, a_map=finding_the_way, a_bell=ringing""",
    separator="=",
)

# The same frames serve several relations, so that a phrasing learned on one carries over to the next.
_NOUN_FRAMES = (
    "What is {0}?",
    "What's {0}?",
    "Tell me {0}.",
    "Can you tell me {0}?",
    "Do you know {0}?",
    "I would like to know {0}.",
    "Name {0}.",
    "I want to know {0}.",
    "Could you tell me {0}?",
    "I forgot {0}.",
)


def _framed(*noun_phrases: str) -> tuple[str, ...]:
    return tuple(frame.format(phrase) for phrase in noun_phrases for frame in _NOUN_FRAMES)


_CAPITALS = Relation(
    name="capital",
    category="facts",
    table=CAPITALS,
    questions=(
        *_framed("the capital of {x}", "the capital city of {x}"),
        "Which city is the capital of {x}?",
        "What city is the capital of {x}?",
        "The capital of {x} is?",
        "Capital of {x}?",
    ),
    answer="The capital of {x} is {y}.",
    statements=(
        "The capital of {x} is {y}.",
        "{y} is the capital of {x}.",
        "{x} has the capital {y}.",
        "The capital city of {x} is {y}.",
    ),
    follow_ups=("And of {x}?", "And {x}?", "What about {x}?", "How about {x}?", "And the capital of {x}?"),
    invented="land",
)

_COUNTRIES = Relation(
    name="country",
    category="facts",
    table=swapped(CAPITALS),
    questions=(
        "Which country has the capital {x}?",
        "{x} is the capital of which country?",
        "What country is {x} the capital of?",
        "Of which country is {x} the capital?",
        "Which country has {x} as its capital?",
        "In which country is {x}?",
        "Where is {x}?",
    ),
    answer="{x} is the capital of {y}.",
    invented="land",
)

_COLOURS = Relation(
    name="colour",
    category="facts",
    table=COLOURS,
    questions=(
        "What colour is {x}?",
        "What color is {x}?",
        "Which colour is {x}?",
        "Which color does {x} have?",
        "What colour does {x} have?",
        *_framed("the colour of {x}"),
        "What is the color of {x}?",
    ),
    answer="{X} is {y}.",
    statements=("{X} is {y}.", "The colour of {x} is {y}.", "Everybody knows that {x} is {y}."),
)

_SOUNDS = Relation(
    name="sound",
    category="facts",
    table=SOUNDS,
    questions=(
        "What sound does {ax} make?",
        "What does {ax} say?",
        "Which sound does {ax} make?",
        "What noise does {ax} make?",
        "How does {ax} go?",
        *_framed("the sound of {ax}"),
    ),
    answer="{Ax} goes {y}.",
    statements=("{Ax} goes {y}.", "{Y}, says the {x}.", "The sound of {ax} is {y}."),
    follow_ups=("And {ax}?", "What about {ax}?", "How about {ax}?"),
    invented="animal",
)

_SAYERS = Relation(
    name="sayer",
    category="facts",
    table=swapped(SOUNDS),
    questions=(
        "Which animal goes {x}?",
        "Which animal says {x}?",
        "What animal says {x}?",
        "What animal goes {x}?",
        "Who says {x}?",
        "What animal makes the sound {x}?",
        "Which animal makes the sound {x}?",
    ),
    answer="{Ay} goes {x}.",
    follow_ups=("And {x}?", "What about {x}?", "And which one says {x}?"),
)

_YOUNG = Relation(
    name="young",
    category="facts",
    table=YOUNG,
    questions=(
        "What is a baby {x} called?",
        "What is a young {x} called?",
        "What do you call a baby {x}?",
        "What do we call a young {x}?",
        "What do you call the young of {ax}?",
        "What is the baby of {ax} called?",
        "What is the young of {ax} called?",
        "How is a young {x} called?",
    ),
    answer="A young {x} is called {ay}.",
    statements=("A young {x} is called {ay}.", "A baby {x} is {ay}.", "The young of {ax} is {ay}."),
    follow_ups=("And a young {x}?", "And {ax}?", "What about a baby {x}?"),
    invented="animal",
)

_HOMES = Relation(
    name="home",
    category="facts",
    table=HOMES,
    questions=(
        "Where does {ax} live?",
        "What is the home of {ax} called?",
        "What is {ax}'s home?",
        "In what does {ax} live?",
        "Where can you find {ax}?",
        "Where is the home of {ax}?",
        *_framed("the home of {ax}"),
    ),
    answer="The home of {ax} is the {y}.",
    statements=("The home of {ax} is the {y}.", "{Ax} lives in the {y}.", "In the {y} lives {ax}."),
    follow_ups=("And {ax}?", "What about {ax}?", "How about {ax}?"),
    invented="animal",
)

_LEGS = Relation(
    name="legs",
    category="facts",
    table=LEGS,
    questions=(
        "How many legs does {ax} have?",
        "How many legs has {ax}?",
        "On how many legs does {ax} walk?",
        "Tell me how many legs {ax} has.",
        "Do you know how many legs {ax} has?",
        "What is the number of legs of {ax}?",
        "How many legs are there on {ax}?",
    ),
    answer="{Ax} has {y} legs.",
    statements=("{Ax} has {y} legs.", "The {x} has {y} legs."),
    follow_ups=("And {ax}?", "What about {ax}?", "How about {ax}?"),
)

_SYMBOLS = Relation(
    name="symbol",
    category="facts",
    table=SYMBOLS,
    questions=(
        *_framed("the chemical symbol of {x}", "the symbol for {x}"),
        "What is the chemical symbol for {x}?",
        "Which symbol does {x} have?",
        "How do chemists write {x}?",
        "Which letters stand for {x}?",
    ),
    answer="The chemical symbol of {x} is {y}.",
    statements=("The chemical symbol of {x} is {y}.", "Chemists write {y} for {x}.", "{y} is the symbol of {x}."),
    follow_ups=("And of {x}?", "And {x}?", "What about {x}?", "And for {x}?"),
    invented="element",
)

_ELEMENTS = Relation(
    name="element",
    category="facts",
    table=swapped(SYMBOLS),
    questions=(
        "Which element has the symbol {x}?",
        "Which element has the chemical symbol {x}?",
        "What element is {x}?",
        "What does the chemical symbol {x} mean?",
        "{x} is the symbol of which element?",
        "What does the symbol {x} stand for?",
        "Which element is written {x}?",
    ),
    answer="{x} is the chemical symbol of {y}.",
    lower_case=False,
)

_PLANETS = Relation(
    name="planet",
    category="facts",
    table=PLANETS,
    questions=(
        "What is the {x} planet from the sun?",
        "Which planet is the {x} from the sun?",
        "Which planet is {x} from the sun?",
        "What is the {x} planet?",
        "Name the {x} planet from the sun.",
        "Tell me the {x} planet from the sun.",
        "Which planet comes {x} from the sun?",
        "Do you know the {x} planet from the sun?",
    ),
    answer="The {x} planet from the sun is {y}.",
    statements=("The {x} planet from the sun is {y}.", "{y} is the {x} planet from the sun."),
    follow_ups=("And the {x}?", "What about the {x}?", "And the {x} one?"),
)

_ORDINALS = Relation(
    name="planet_place",
    category="facts",
    table=swapped(PLANETS),
    questions=(
        "Which planet from the sun is {x}?",
        "What place does {x} have from the sun?",
        "Where does {x} come among the planets?",
        "Is {x} the first, second or which planet?",
        "What number is the planet {x} from the sun?",
        "Counting from the sun, which planet is {x}?",
    ),
    answer="{x} is the {y} planet from the sun.",
)

_USES = Relation(
    name="use",
    category="facts",
    table=USES,
    questions=(
        "What is {x} for?",
        "What do you use {x} for?",
        "What is {x} used for?",
        "What do people use {x} for?",
        "What can you do with {x}?",
        "Tell me what {x} is for.",
        "Why do people have {x}?",
    ),
    answer="{X} is used for {y}.",
    statements=("{X} is used for {y}.", "People use {x} for {y}.", "For {y} you use {x}."),
)

RELATIONS = (
    _CAPITALS,
    _COUNTRIES,
    _COLOURS,
    _SOUNDS,
    _SAYERS,
    _YOUNG,
    _HOMES,
    _LEGS,
    _SYMBOLS,
    _ELEMENTS,
    _PLANETS,
    _ORDINALS,
    _USES,
)
# In proportion to the number of entries, so that every fact is told about as often as any other.
_WEIGHTS = tuple(len(relation.entries) for relation in RELATIONS)


def choose_relation(rng: Random) -> Relation:
    """A relation, the larger tables more often."""
    return rng.choices(RELATIONS, _WEIGHTS)[0]


def _make(rng: Random) -> Turn:
    return choose_relation(rng).make(rng)


def sample(rng: Random, split: str) -> Turn:
    """A question about a fact of the world."""
    return draw(rng, split, _make)
