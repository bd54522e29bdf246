"""Days, months and seasons."""

from __future__ import annotations

from random import Random

from nanochat_lit.data.tiny_world.relations import Relation
from nanochat_lit.data.tiny_world.turns import Turn, draw

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
SEASONS = ("spring", "summer", "autumn", "winter")
ORDINALS = (
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
)
_LENGTHS = ("31", "28", "31", "30", "31", "30", "31", "31", "30", "31", "30", "31")


def _shifted(names: tuple[str, ...], by: int) -> dict[str, str]:
    return {name: names[(index + by) % len(names)] for index, name in enumerate(names)}


def _neighbours(unit: str, names: tuple[str, ...]) -> tuple[Relation, Relation]:
    """The relations "after" and "before" of a cycle of names."""
    after = Relation(
        name=f"{unit}_after",
        category="days",
        table=_shifted(names, 1),
        questions=(
            f"Which {unit} comes after {{x}}?",
            f"What {unit} comes after {{x}}?",
            f"What {unit} follows {{x}}?",
            f"Which {unit} follows {{x}}?",
            f"What is the {unit} after {{x}}?",
            f"Tell me the {unit} after {{x}}.",
            f"Which {unit} comes right after {{x}}?",
            f"After {{x}} comes which {unit}?",
            f"Do you know the {unit} after {{x}}?",
            f"Name the {unit} after {{x}}.",
            "What comes after {x}?",
        ),
        answer="{Y} comes after {x}.",
        accepted=("{y} comes after", "after {x} comes {y}"),
        follow_ups=("And after {x}?", "What about after {x}?", "And what comes after {x}?"),
    )
    before = Relation(
        name=f"{unit}_before",
        category="days",
        table=_shifted(names, -1),
        questions=(
            f"Which {unit} comes before {{x}}?",
            f"What {unit} comes before {{x}}?",
            f"Which {unit} is before {{x}}?",
            f"What is the {unit} before {{x}}?",
            f"Tell me the {unit} before {{x}}.",
            f"Which {unit} comes right before {{x}}?",
            f"Before {{x}} comes which {unit}?",
            f"Do you know the {unit} before {{x}}?",
            f"Name the {unit} before {{x}}.",
            "What comes before {x}?",
        ),
        answer="{Y} comes before {x}.",
        accepted=("{y} comes before", "before {x} comes {y}"),
        follow_ups=("And before {x}?", "What about before {x}?", "And what comes before {x}?"),
    )
    return after, before


_TOMORROW = Relation(
    name="tomorrow",
    category="days",
    table=_shifted(DAYS, 1),
    questions=(
        "If today is {x}, what day is tomorrow?",
        "Today is {x}. What day is tomorrow?",
        "Today is {x}. What is tomorrow?",
        "If it is {x} today, what day is it tomorrow?",
        "It is {x} today. Which day is tomorrow?",
        "When today is {x}, which day is tomorrow?",
        "If today is {x}, which day will it be tomorrow?",
        "What day is tomorrow if today is {x}?",
        "Which day is tomorrow when today is {x}?",
    ),
    answer="If today is {x}, tomorrow is {y}.",
    accepted=("tomorrow is {y}",),
    follow_ups=("And if today is {x}?", "What if today is {x}?"),
)

_YESTERDAY = Relation(
    name="yesterday",
    category="days",
    table=_shifted(DAYS, -1),
    questions=(
        "If today is {x}, what day was yesterday?",
        "Today is {x}. What day was yesterday?",
        "Today is {x}. What was yesterday?",
        "If it is {x} today, what day was it yesterday?",
        "It is {x} today. Which day was yesterday?",
        "When today is {x}, which day was yesterday?",
        "What day was yesterday if today is {x}?",
        "Which day was yesterday when today is {x}?",
    ),
    answer="If today is {x}, yesterday was {y}.",
    accepted=("yesterday was {y}",),
    follow_ups=("And if today is {x}?", "What if today is {x}?"),
)

_NUMBERED = Relation(
    name="month_number",
    category="days",
    table=dict(zip(ORDINALS, MONTHS, strict=True)),
    questions=(
        "What is the {x} month of the year?",
        "Which month is the {x} of the year?",
        "What is the {x} month?",
        "Name the {x} month of the year.",
        "Tell me the {x} month of the year.",
        "Which month comes {x} in the year?",
        "Do you know the {x} month of the year?",
    ),
    answer="The {x} month of the year is {y}.",
    accepted=("{x} month of the year is {y}",),
    follow_ups=("And the {x}?", "What about the {x}?"),
)

_WEEK = Relation(
    name="day_number",
    category="days",
    table=dict(zip(ORDINALS[:7], DAYS, strict=True)),
    questions=(
        "What is the {x} day of the week?",
        "Which day is the {x} of the week?",
        "Name the {x} day of the week.",
        "Tell me the {x} day of the week.",
        "Which day comes {x} in the week?",
        "Do you know the {x} day of the week?",
    ),
    answer="The {x} day of the week is {y}.",
    accepted=("{x} day of the week is {y}",),
    follow_ups=("And the {x}?", "What about the {x}?"),
)

_DAYS_IN_MONTH = Relation(
    name="days_in_month",
    category="days",
    table=dict(zip(MONTHS, _LENGTHS, strict=True)),
    questions=(
        "How many days does {x} have?",
        "How many days has {x}?",
        "How many days are in {x}?",
        "How many days are there in {x}?",
        "How long is {x}?",
        "Tell me how many days {x} has.",
        "Do you know how many days {x} has?",
    ),
    answer="{x} has {y} days.",
)

_AFTER_DAY, _BEFORE_DAY = _neighbours("day", DAYS)
_AFTER_MONTH, _BEFORE_MONTH = _neighbours("month", MONTHS)
_AFTER_SEASON, _BEFORE_SEASON = _neighbours("season", SEASONS)

RELATIONS = (
    _AFTER_DAY,
    _BEFORE_DAY,
    _AFTER_MONTH,
    _BEFORE_MONTH,
    _AFTER_SEASON,
    _BEFORE_SEASON,
    _TOMORROW,
    _YESTERDAY,
    _NUMBERED,
    _WEEK,
    _DAYS_IN_MONTH,
)
_WEIGHTS = tuple(len(relation.entries) for relation in RELATIONS)


def choose_relation(rng: Random) -> Relation:
    """A relation of the calendar, the larger tables more often."""
    return rng.choices(RELATIONS, _WEIGHTS)[0]


def _make(rng: Random) -> Turn:
    return choose_relation(rng).make(rng)


def sample(rng: Random, split: str) -> Turn:
    """A question about days, months or seasons."""
    return draw(rng, split, _make)
