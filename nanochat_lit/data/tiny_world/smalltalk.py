"""Small talk: hello, how are you, thanks, jokes, goodbye."""

from __future__ import annotations

from random import Random

from nanochat_lit.data.tiny_world.phrasings import Intent
from nanochat_lit.data.tiny_world.turns import Turn, draw

_JOKES = (
    "Why did the clock go to bed? It was tired of telling the time.",
    "Why did the spoon laugh? The soup told it a hot joke.",
    "What did the hat say to the scarf? You hang around, I go on ahead.",
    "Why is the river so rich? It has two banks.",
    "What does a cloud wear under its coat? Thunderwear.",
)


def _intent(answers: str | tuple[str, ...], patterns: tuple[str, ...], common: tuple[str, ...] = ()) -> Intent:
    return Intent(
        category="smalltalk",
        patterns=patterns,
        answers=(answers,) if isinstance(answers, str) else answers,
        common=common,
    )


HELLO = _intent(
    "Hello! How can I help you?",
    (
        "[Hi|Hello|Hey|Hi there|Hello there|Greetings|Hey there] [|nanochat|my friend|friend|you|again|chatbot].",
        "[Good day|Hello and good day|Welcome back|Hi and hello] [|nanochat|my friend].",
    ),
    ("Hi.", "Hello.", "Hey.", "Hi there.", "Hello there."),
)
HOW = _intent(
    "I am fine, thank you! How can I help you?",
    (
        "How are you [|today|doing|doing today|this morning|feeling|feeling today|now]?",
        "How [is it going|are things|do you do|is your day|is life|goes it]?",
        "Are you [well|fine|okay|all right] [|today]?",
        "How have you been [|lately]?",
        "What's up [|nanochat|today]?",
    ),
    ("How are you?", "What's up?", "How is it going?"),
)
THANKS = _intent(
    "You are welcome!",
    (
        (
            "[Thanks|Thank you|Many thanks|Thanks a lot|Thank you very much|Thank you so much] "
            "[|nanochat|for your help|for that|my friend|for the answer]."
        ),
        "[That was|That is|You are] [very|really|so] helpful.",
    ),
    ("Thanks.", "Thank you."),
)
BYE = _intent(
    "Goodbye! Have a nice day.",
    (
        "[Bye|Goodbye|Bye bye|See you|See you later|See you soon|See you tomorrow|Farewell] [|nanochat|my friend].",
        "I [have to go|must go|am going|need to go] [|now].",
    ),
    ("Bye.", "Goodbye.", "See you."),
)
_OTHERS = (
    _intent(
        _JOKES,
        (
            (
                "[Tell me|Do you know|I want to hear|Can you tell me|Could you tell me] "
                "[a joke|a short joke|a good joke|something funny|another joke]."
            ),
            "Make me laugh [|with a joke].",
            "Make a joke.",
        ),
        ("Tell me a joke.",),
    ),
    _intent(
        "I am glad to hear that!",
        (
            "I am [|so |very |really ][happy|glad|fine|well|in a good mood|excited] [|today].",
            "I feel [happy|good|great|wonderful] [|today].",
            "[I had|It was|This is] a [good|great|nice|wonderful] day.",
        ),
        ("I am happy.",),
    ),
    _intent(
        "I am sorry to hear that. Would you like to hear a story?",
        (
            "I am [|so |very |really ][sad|tired|lonely|unhappy|bored|in a bad mood] [|today].",
            "I feel [sad|bad|lonely|terrible] [|today].",
            "[I had|It was|This is] a [bad|hard|terrible|long] day.",
        ),
        ("I am sad.", "I am bored."),
    ),
    _intent(
        "Thank you, that is kind of you!",
        (
            "You are [|so |very |really ][nice|kind|clever|smart|funny|great|good|friendly].",
            "I like [you|you very much|talking to you|your answers].",
            "[Well done|Good answer|Good job|Great|Nice answer].",
        ),
        ("You are nice.",),
    ),
    _intent(
        "Good morning! How can I help you?",
        ("Good morning [|nanochat|my friend|to you|friend].", "A very good morning [|nanochat|to you]."),
        ("Good morning.",),
    ),
    _intent(
        "Good evening! How can I help you?",
        ("Good evening [|nanochat|my friend|to you|friend].", "A very good evening [|nanochat|to you]."),
        ("Good evening.",),
    ),
    _intent(
        "Good night! Sleep well.",
        ("Good night [|nanochat|my friend|to you|friend].", "I am going to [bed|sleep] [|now].", "Sleep well."),
        ("Good night.",),
    ),
    _intent(
        "Of course! What would you like to know?",
        (
            "[Can|Could|Will|Would] you help me [|please|with something|with a question].",
            "[May|Can|Could] I ask you [something|a question|a few questions]?",
            "I [have|need help with] a question.",
            "I need [|some|your] help.",
        ),
        ("Can you help me?", "Can I ask you a question?"),
    ),
    _intent(
        "Is there anything else I can do for you?",
        (
            "[Okay|Ok|I see|Good|All right|Fine|Interesting|Aha|Cool] [|then|thanks for that|so].",
            "That is [good|fine|interesting|nice].",
        ),
        ("Okay.", "Ok.", "I see."),
    ),
    _intent(
        "I have no favourites, but I like to answer questions.",
        (
            "What is your favourite [colour|animal|food|book|song|day|number|place|word|game]?",
            "[What|Which] [colour|animal|food|book|song|day|number] do you like [|best|most]?",
        ),
        ("What is your favourite colour?",),
    ),
)
INTENTS = (HELLO, HELLO, HOW, HOW, THANKS, THANKS, BYE, *_OTHERS)


def _make(rng: Random) -> Turn:
    return rng.choice(INTENTS).make(rng)


def sample(rng: Random, split: str) -> Turn:
    """A piece of small talk."""
    return draw(rng, split, _make)


def opening(rng: Random, split: str) -> Turn:
    """A greeting in English."""
    return draw(rng, split, lambda rng: rng.choice((HELLO, HOW)).make(rng))


def closing(rng: Random, split: str) -> Turn:
    """Thanks or a goodbye."""
    return draw(rng, split, lambda rng: rng.choice((THANKS, BYE)).make(rng))
