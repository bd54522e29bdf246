"""System prompts of the world: a word that every answer of the conversation begins or ends with."""

from random import Random

from nanochat_lit.tiny_world.templates import pick, template
from nanochat_lit.tiny_world.turns import Expect, Parts, Turn, capitalise, draw, phrase_key
from nanochat_lit.tiny_world.unknown import invented_name, name_key

CATEGORY = "instructions"


def _with_word(answer: str | Parts, word: str, where: str) -> str | Parts:
    """The answer with the word at its end or before its text."""
    if isinstance(answer, list):
        return [*answer[:-1], {"type": "text", "text": str(_with_word(answer[-1]["text"], word, where))}]
    if where == "begin":
        return f"{word}. {answer}"
    return f"{answer}{'' if answer[-1] in '.!?' else '.'} {word}{'' if word[-1] in '.!?' else '.'}"


def _make(rng: Random) -> Turn:
    """A system prompt as a turn: the answer says where the word of `expect` stands."""
    where = rng.choice(("begin", "end", "role"))
    if where == "role":
        role, word = rng.choice(tuple(template(CATEGORY)["roles"].items()))
        prompt = pick(rng, CATEGORY, "role").format(r=role)
        return Turn(CATEGORY, phrase_key(CATEGORY, prompt), prompt, "end", {"all": [word]})
    is_new = rng.random() < 0.5
    word = capitalise(invented_name(rng, "word") if is_new else pick(rng, "lexicon", "words"))
    prompt = pick(rng, CATEGORY, where).format(w=word)
    key = name_key(word) if is_new else f"{CATEGORY}:{where}:{word.lower()}"
    return Turn(CATEGORY, key, prompt, where, {"all": [word]})


def _expect_also(expect: Expect, word: str) -> Expect:
    """The expectation with the word, which may be one that the answer itself must not have."""
    known = {"all": [*expect.get("all", ()), word]}
    if "none" in expect:
        known["none"] = [other for other in expect["none"] if other.lower() != word.lower()]
    return {**expect, **known}


def instruct(rng: Random, split: str, turns: list[Turn]) -> list[Turn]:
    """The turns after a system prompt of the split, which every answer follows."""
    drawn = draw(rng, split, _make)
    (word,), where = drawn.expect["all"], str(drawn.answer)
    first, *others = (
        turn._replace(answer=_with_word(turn.answer, word, where), expect=_expect_also(turn.expect, word))
        for turn in turns
    )
    return [first._replace(system=drawn.question), *others]
