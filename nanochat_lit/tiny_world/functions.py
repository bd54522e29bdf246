"""Functions of a user's program: the model calls the one that a question needs, and says what it returned."""

from random import Random
from typing import Any

from nanochat_lit.common.tool_format import ToolCall, render_call, render_results, render_tools
from nanochat_lit.tiny_world.splits import split_of
from nanochat_lit.tiny_world.templates import names, pick, template
from nanochat_lit.tiny_world.turns import Turn, capitalise, draw
from nanochat_lit.tiny_world.unknown import invented_name, name_key

CATEGORY = "functions"


def _function(noun: str, argument: str) -> dict[str, Any]:
    return {
        "name": f"get_{noun.replace(' ', '_')}",
        "parameters": {"type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]},
    }


def _value(rng: Random, argument: str) -> str:
    if argument == "city" and rng.random() < 0.5:
        return pick(rng, CATEGORY, "cities")
    if argument in ("name", "user") and rng.random() < 0.5:
        return rng.choice(names())
    return capitalise(invented_name(rng, "word"))


def _offer(rng: Random, functions: list[dict[str, Any]]) -> str:
    rng.shuffle(functions)
    return render_tools(functions) + "\n\n"


def _noun(rng: Random) -> tuple[str, str, str, list[str]]:
    """A noun with the word that follows it, the argument of its function and what that returns."""
    if rng.random() < 0.5:
        return invented_name(rng, "word"), "of", pick(rng, CATEGORY, "arguments"), template(CATEGORY)["results"]
    noun, (follows, argument, results) = rng.choice(tuple(template(CATEGORY)["nouns"].items()))
    return noun, follows, argument, results


def sample(rng: Random, split: str) -> list[Turn]:
    """A question with one function or two to choose from, the call of one, and often its result and the answer."""
    said = ""

    def make(rng: Random) -> Turn:
        nonlocal said
        noun, follows, argument, results = _noun(rng)
        value = _value(rng, argument)
        offered = [_function(noun, argument)]
        if rng.random() < 0.7:
            other, _, other_argument, _ = _noun(rng)
            if other != noun:
                offered.append(_function(other, other_argument))
        call = ToolCall(offered[0]["name"], {argument: value})
        words = {"n": noun, "o": follows, "v": value}
        question = _offer(rng, offered) + pick(rng, CATEGORY, "asked").format(**words)
        result = rng.choice(results).format(h=rng.randrange(10, 24), m=rng.randrange(10, 60))
        said = template(CATEGORY)["answer"].format(**words, r=result)
        key = f"{name_key(value)}:{noun}"
        return Turn(CATEGORY, key, question, render_call(call), {"call": call._asdict(), "result": result})

    first = draw(rng, split, make)
    result = first.expect.pop("result")
    if rng.random() < 0.4:
        return [first]
    return [first, Turn(CATEGORY, first.key, render_results([result]), said, {"all": [said]})]


def offer_others(rng: Random, split: str, turns: list[Turn]) -> list[Turn]:
    """The turns after an offer of functions that their first question does not need."""
    functions = []
    while not functions or (len(functions) < 3 and rng.random() < 0.3):
        noun, _, argument, _ = _noun(rng)
        if split_of(name_key(noun)) == split:
            functions.append(_function(noun, argument))
    return [turns[0]._replace(question=_offer(rng, functions) + turns[0].question), *turns[1:]]
