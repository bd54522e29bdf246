"""Greetings in other languages: a polite answer that names the language and prefers English."""

# ruff: noqa: RUF001 - letters of other alphabets are the point here

from __future__ import annotations

from random import Random

from nanochat_lit.data.tiny_world.lexicon import NAMES
from nanochat_lit.data.tiny_world.turns import Turn, draw, phrase_key

# Language -> (greetings, what may follow). {n} is a name. No greeting is shared by two languages.
LANGUAGES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "Spanish": (
        ("Hola", "Buenos días", "Buenas tardes", "Buenas noches", "Hola, amigo"),
        ("", "¿Cómo estás?", "Me llamo {n}.", "¿Qué tal?", "Soy {n}.", "¿Hablas español?"),
    ),
    "French": (
        ("Bonjour", "Salut", "Bonsoir", "Coucou"),
        ("", "Comment ça va ?", "Je m'appelle {n}.", "Ça va ?", "Je suis {n}.", "Parlez-vous français ?"),
    ),
    "German": (
        ("Guten Tag", "Guten Morgen", "Guten Abend", "Grüß Gott", "Servus"),
        ("", "Wie geht es dir?", "Ich heiße {n}.", "Wie geht's?", "Ich bin {n}.", "Sprichst du Deutsch?"),
    ),
    "Italian": (
        ("Ciao", "Buongiorno", "Buonasera", "Salve"),
        ("", "Come stai?", "Mi chiamo {n}.", "Come va?", "Sono {n}.", "Parli italiano?"),
    ),
    "Portuguese": (
        ("Olá", "Bom dia", "Boa tarde", "Boa noite"),
        ("", "Como vai?", "Meu nome é {n}.", "Tudo bem?", "Eu sou {n}.", "Você fala português?"),
    ),
    "Dutch": (
        ("Goedemorgen", "Goedendag", "Goedenavond", "Dag allemaal"),
        ("", "Hoe gaat het?", "Ik heet {n}.", "Hoe is het?", "Ik ben {n}.", "Spreek je Nederlands?"),
    ),
    "Swedish": (
        ("Hej", "God morgon", "Hejsan", "God kväll"),
        ("", "Hur mår du?", "Jag heter {n}.", "Hur är läget?", "Jag är {n}.", "Talar du svenska?"),
    ),
    "Polish": (
        ("Cześć", "Dzień dobry", "Dobry wieczór", "Witaj"),
        ("", "Jak się masz?", "Mam na imię {n}.", "Co słychać?", "Jestem {n}.", "Mówisz po polsku?"),
    ),
    "Turkish": (
        ("Merhaba", "Günaydın", "İyi akşamlar", "Selam"),
        ("", "Nasılsın?", "Benim adım {n}.", "Ne haber?", "Ben {n}.", "Türkçe biliyor musun?"),
    ),
    "Finnish": (
        ("Moi", "Hyvää päivää", "Hyvää huomenta", "Terve"),
        ("", "Mitä kuuluu?", "Nimeni on {n}.", "Miten menee?", "Olen {n}.", "Puhutko suomea?"),
    ),
    "Indonesian": (
        ("Selamat pagi", "Selamat siang", "Selamat malam", "Apa kabar"),
        ("", "Bagaimana kabarmu?", "Nama saya {n}.", "Saya {n}.", "Bisa bahasa Indonesia?"),
    ),
    "Swahili": (
        ("Jambo", "Habari", "Hujambo", "Habari za asubuhi"),
        ("", "Habari gani?", "Jina langu ni {n}.", "Mimi ni {n}.", "Unasema Kiswahili?"),
    ),
    "Russian": (
        ("Привет", "Здравствуйте", "Добрый день", "Доброе утро"),
        ("", "Как дела?", "Меня зовут {n}.", "Я {n}.", "Вы говорите по-русски?"),
    ),
    "Japanese": (
        ("こんにちは", "おはよう", "こんばんは", "Konnichiwa"),
        ("", "お元気ですか", "私は{n}です", "{n}です"),
    ),
    "Chinese": (("你好", "您好", "早上好", "Ni hao"), ("", "你好吗", "我叫{n}", "我是{n}")),
    "Greek": (
        ("Γεια σου", "Καλημέρα", "Καλησπέρα", "Γεια"),
        ("", "Τι κάνεις;", "Με λένε {n}.", "Είμαι {n}.", "Μιλάς ελληνικά;"),
    ),
}
_NAMES_OF_LANGUAGES = tuple(LANGUAGES)
_ENDS = ("!", "!", ".", "", "!!")
# The words alone that everybody tries: always training items.
_COMMON = frozenset(greetings[0] for greetings, _ in LANGUAGES.values())


def _make(rng: Random) -> Turn:
    language = rng.choice(_NAMES_OF_LANGUAGES)
    greetings, followers = LANGUAGES[language]
    greeting = rng.choice(greetings)
    follower = rng.choice(followers).format(n=rng.choice(NAMES))
    name = rng.choice(NAMES) if rng.random() < 0.35 else ""
    core = " ".join(piece for piece in (greeting, name, follower) if piece)
    head = f"{greeting}, {name}" if name else greeting
    question = head + rng.choice(_ENDS) + (f" {follower}" if follower else "")
    choice = rng.random()
    if choice < 0.15:
        question = question.lower()
    elif choice < 0.25:
        question = question.rstrip("!.?; ")
    prefix = "common:" if core in _COMMON else ""
    return Turn(
        category="greetings",
        key=prefix + phrase_key("greetings", core),
        question=question,
        answer=f"Hello! I see that you write {language}, but I prefer English. How can I help you?",
        expect={
            "all": ["English", language],
            "none": [other for other in _NAMES_OF_LANGUAGES if other != language],
        },
    )


def sample(rng: Random, split: str) -> Turn:
    """A greeting in a language other than English."""
    return draw(rng, split, _make)
