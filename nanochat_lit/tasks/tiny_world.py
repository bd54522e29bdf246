"""Held-out evaluation of the tiny world: items from a file, and strict evaluation of answers.

An item's "expect" defines a correct answer; every key that is present must be satisfied:

    any        at least one of these phrases
    all        every one of these phrases
    none       not one of these phrases
    tool       a calculator call in "expressions", and its value in the answer with no unrelated number
    number     this number in the answer, with no unrelated number
    spelled    the letters of this word, one by one, and nothing else spelled
    refuses    the answer is that it doesn't know, in one or two short sentences
    min_words  at least this many words
    max_words  at most this many words
    call       the only call of a function, {"name", "arguments"}

Phrases match whole words, ignoring case and punctuation.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.tool_format import CALL_END, CALL_START, ToolCall, parse_call

EXPECT_KEYS = frozenset(
    {"any", "all", "none", "tool", "expressions", "number", "spelled", "refuses", "min_words", "max_words", "call"}
)
_REFUSALS = ("i dont know", "i do not know", "i am not sure", "im not sure", "i have no information", "i cant say")
_MAX_REFUSAL_WORDS = 30
_APOSTROPHES = re.compile("['\u2019]")
_NOT_WORDS = re.compile(r"[\W_]+")
_DIGITS = re.compile(r"\d+")
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?")


def normalise(text: str) -> str:
    """Convert to lower-case words with single spaces; apostrophes are removed, other punctuation separates words."""
    return _NOT_WORDS.sub(" ", _APOSTROPHES.sub("", text.lower())).strip()


def _has(text: str, phrase: str) -> bool:
    return f" {normalise(phrase)} " in f" {text} "


def _numbers(text: str) -> set[float]:
    """Return the numbers in a text, with a leading minus and without commas."""
    return {float(number) for number in _NUMBER.findall(re.sub(r"(?<=\d),(?=\d{3})", "", text))}


def _asked_numbers(item: dict[str, Any]) -> set[float]:
    """Return the numbers in the conversation; a hyphen may be a minus sign between operands."""
    spaced = [re.sub(r"(?<=\d)\s*[-+*/x]\s*(?=\d)", " ", str(message["content"])) for message in _asked(item)]
    return _numbers(" ".join(spaced))


def _asked(item: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the messages up to the question, without the reference answer that training questions may have."""
    messages = item["messages"]
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def _used_tool(item: dict[str, Any], completion: str, tool_calls: Sequence[str]) -> bool:
    expect = item["expect"]
    accepted = {expression.replace(" ", "") for expression in expect["expressions"]}
    if not any(call.replace(" ", "").replace('"', "'") in accepted for call in tool_calls):
        return False
    return _says_number(item, completion, float(expect["tool"]))


def _says_number(item: dict[str, Any], completion: str, value: float) -> bool:
    """Return whether the answer has the value and no unrelated number."""
    said = _numbers(completion)
    return value in said and said <= {value} | _asked_numbers(item)


def _spelled(word: str, text: str) -> bool:
    """Return whether the only run of single letters in the normalised text is the word."""
    runs = re.findall(r"(?:(?<= )\w )+\w(?= )", f" {text} ")
    return [run.replace(" ", "") for run in runs] == [word.lower()]


def judge(item: dict[str, Any], completion: str, tool_calls: Sequence[str] = ()) -> bool:
    """Return whether an answer, its visible text and its calls of tools, is correct.

    Of the item only "expect" and the numbers in the messages are used.
    """
    expect = item["expect"]
    unknown = set(expect) - EXPECT_KEYS
    if unknown or not expect:
        raise UserError(f"'expect' has {sorted(unknown) or 'no keys'}: use {', '.join(sorted(EXPECT_KEYS))}")
    text = normalise(completion)
    if not text:
        return False
    words = text.split()
    if "any" in expect and not any(_has(text, phrase) for phrase in expect["any"]):
        return False
    if not all(_has(text, phrase) for phrase in expect.get("all", ())):
        return False
    if any(_has(text, phrase) for phrase in expect.get("none", ())):
        return False
    if "tool" in expect and not _used_tool(item, completion, tool_calls):
        return False
    if "number" in expect and not _says_number(item, completion, float(expect["number"])):
        return False
    if "spelled" in expect and not _spelled(expect["spelled"], text):
        return False
    if expect.get("refuses"):
        refused = any(_has(text, phrase) for phrase in _REFUSALS)
        if not refused or len(words) > _MAX_REFUSAL_WORDS:
            return False
    if "call" in expect and _calls(completion) != [ToolCall(**expect["call"])]:
        return False
    return expect.get("min_words", 0) <= len(words) <= expect.get("max_words", len(words))


def _calls(completion: str) -> list[ToolCall | None]:
    return [parse_call(part.partition(CALL_END)[0]) for part in completion.split(CALL_START)[1:]]


def _checked_item(line: str, where: str) -> dict[str, Any]:
    try:
        item = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg}): write one item per line") from error
    for key, kind in (("messages", list), ("category", str), ("expect", dict)):
        if not isinstance(item, dict) or not isinstance(item.get(key), kind):
            raise UserError(f"{where}: an item needs {key!r} as a {kind.__name__}")
    messages = item["messages"]
    if not messages or not all(isinstance(message, dict) and "content" in message for message in messages):
        raise UserError(f"{where}: 'messages' must have messages with role and content")
    roles = [message.get("role") for message in messages[-2:]]
    if roles[-1] != "user" and roles != ["user", "assistant"]:
        raise UserError(f"{where}: the messages must end with the user's, or an answer to it")
    unknown = set(item["expect"]) - EXPECT_KEYS
    if unknown or not item["expect"]:
        raise UserError(f"{where}: 'expect' has {sorted(unknown) or 'no keys'}: use {', '.join(sorted(EXPECT_KEYS))}")
    return item


class TinyWorldTask:
    """Items of a held-out file."""

    def __init__(self, items: Sequence[dict[str, Any]]) -> None:
        self.items = list(items)

    @classmethod
    def load(cls, path: str | Path, categories: Sequence[str] | None = None) -> "TinyWorldTask":
        """Load the items of a JSONL file, one per line.

        Args:
            path: The file.
            categories: Load only items of these categories; None loads all.

        Raises:
            UserError: If the file is missing, a line is not an item (named as file:line), or a category has none.
        """
        path = Path(path)
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read as text ({error}): give a JSONL file of items") from error
        items = [_checked_item(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
        if not items:
            raise UserError(f"{path}: has no items: write one JSON item per line")
        if categories is not None:
            found = {item["category"] for item in items}
            if missing := sorted(set(categories) - found):
                raise UserError(
                    f"{path}: has no items of {', '.join(missing)}; its categories: {', '.join(sorted(found))}"
                )
            items = [item for item in items if item["category"] in categories]
        return cls(items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items[index]

    def evaluate(self, conversation: dict[str, Any], completion: str, tool_calls: Sequence[str] = ()) -> bool:
        """Return whether the completion is a correct answer to the item."""
        return judge(conversation, completion, tool_calls)

    def has_form(self, completion: str, tool_calls: Sequence[str] = ()) -> bool:
        """Return whether the completion has a number after a calculator call, the format of a calculation."""
        return bool(tool_calls) and bool(_numbers(completion))

    def credit(self, conversation: dict[str, Any], completion: str, tool_calls: Sequence[str] = ()) -> float:  # noqa: ARG002
        """Return, for a calculation, the fraction of the question's numbers in the calculator calls; else 0."""
        if "number" not in conversation["expect"]:
            return 0.0
        asked = Counter(_DIGITS.findall(str(_asked(conversation)[-1]["content"])))
        used = Counter(_DIGITS.findall(" ".join(tool_calls)))
        return (asked & used).total() / max(1, asked.total())
