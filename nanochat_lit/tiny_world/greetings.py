"""Greetings in other languages: a polite answer that names the language and prefers English."""

from random import Random

from nanochat_lit.tiny_world.splits import COMMON_PREFIX
from nanochat_lit.tiny_world.templates import names, pick, template
from nanochat_lit.tiny_world.turns import Turn, capitalise, draw, phrase_key

UNKNOWN = "languages"


def _make(rng: Random) -> Turn:
    languages = template("greetings")["languages"]
    language = rng.choice(tuple(languages))
    greetings, followers = languages[language]
    greeting = rng.choice(greetings)
    follower = rng.choice(followers).format(n=rng.choice(names()))
    name = rng.choice(names()) if rng.random() < 0.35 else ""
    core = " ".join(piece for piece in (greeting, name, follower) if piece)
    head = f"{greeting}, {name}" if name else greeting
    question = head + pick(rng, "greetings", "ends") + (f" {follower}" if follower else "")
    choice = rng.random()
    if choice < 0.15:
        question = question.lower()
    elif choice < 0.25:
        question = question.rstrip("!.?; ")
    elif choice < 0.35:
        question = question.rstrip("!.?; ").lower()
    prefix = COMMON_PREFIX if core == greetings[0] else ""
    return Turn(
        category="greetings",
        key=prefix + phrase_key("greetings", core),
        question=question,
        answer=f"Hello! I see that you write {language}, but I prefer English. How can I help you?",
        expect={"all": ["English", language], "none": [other for other in languages if other != language]},
    )


def sample(rng: Random, split: str) -> Turn:
    """A greeting in a language other than English."""
    return draw(rng, split, _make)


def _foreign_words(rng: Random) -> str:
    """One or two words of some letters, so that not knowing a language is what the model does unless it knows better."""
    letters = pick(rng, UNKNOWN, "letters")
    words = ("".join(rng.choices(letters, k=rng.randrange(3, 8))) for _ in range(rng.choice((1, 1, 2))))
    return capitalise(" ".join(words))


def _make_unknown(rng: Random) -> Turn:
    greeting = pick(rng, UNKNOWN, "others") if rng.random() < 0.5 else _foreign_words(rng)
    question = rng.choice((greeting, greeting, greeting.lower())) + pick(rng, "greetings", "ends")
    expect = {"all": ["English"], "none": list(template("greetings")["languages"])}
    return Turn(UNKNOWN, phrase_key(UNKNOWN, greeting), question, template(UNKNOWN)["not_known"], expect)


def sample_unknown(rng: Random, split: str) -> Turn:
    """A greeting in a language that the world does not know."""
    return draw(rng, split, _make_unknown)
