"""Counting letters (with the tool) and spelling words, which models must learn because they see tokens.

Every question is generated from its index, so the tasks need no file; a list of words is optional.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from random import Random

from nanochat_lit.common.errors import UserError, check_at_least_one
from nanochat_lit.tasks.base import Conversation
from nanochat_lit.tasks.tiny_world import judge

_ASK_COUNT = (
    "How many {letter} are in the word {word}?",
    "How many times does the letter {letter} appear in {word}?",
    "Count the number of {letter} in {word}",
    "how many {letter}s in {word}",
    "In the word {word}, how often is there a {letter}?",
    "What is the number of the letter {letter} in {word}?",
)
_ASK_SPELLING = ("Spell the word: {word}", "How is {word} spelled?", "Spell {word}, letter by letter.")
_ANSWER = re.compile(r"####\s*(\d+)")
_SEEDS = {"train": 0, "test": 10_000_000}
"""Seeds of the splits; with few words, some questions occur in both."""


class WordTask(ABC):
    """Questions about words, each generated from its index.

    Args:
        size: Number of questions; question i does not depend on the size.
        split: "train" or "test".
        path: File of words, one per line; None uses a built-in list.
    """

    def __init__(self, size: int = 1000, split: str = "train", path: str | Path | None = None) -> None:
        check_at_least_one(size=size)
        if split not in _SEEDS:
            raise UserError(f"split is {split!r}; use one of {', '.join(_SEEDS)}")
        self.size, self.seed, self.words = size, _SEEDS[split], _words(path)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Conversation:
        rng = Random(self.seed + range(self.size)[index])
        return self._conversation(rng.choice(self.words), rng)

    @abstractmethod
    def _conversation(self, word: str, rng: Random) -> Conversation:
        """Return a question about the word with its answer."""


class CountLetters(WordTask):
    """Count a letter in a word: spelled out, then counted with the tool; the number follows "####"."""

    def _conversation(self, word: str, rng: Random) -> Conversation:
        letter = rng.choice(word) if rng.random() < 0.9 else rng.choice("abcdefghijklmnopqrstuvwxyz")
        count = word.count(letter)
        shown = rng.choice(("{}", "'{}'", '"{}"')).format(letter)
        question = rng.choice(_ASK_COUNT).format(letter=shown, word=word)
        spelled = ",".join(word)
        parts = [
            {"type": "text", "text": f"We count the letter '{letter}' in '{word}'. Its letters are {spelled}.\n"},
            {"type": "python", "text": f"'{word}'.count('{letter}')"},
            {"type": "python_output", "text": str(count)},
            {"type": "text", "text": f"\n#### {count}"},
        ]
        return {
            "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": parts}],
            "count": count,
        }

    def evaluate(self, conversation: Conversation, completion: str, tool_calls: Sequence[str] = ()) -> bool:
        """Return whether the number after "####" is correct."""
        del tool_calls
        match = _ANSWER.search(completion)
        return match is not None and int(match[1]) == conversation["count"]


class SpellWord(WordTask):
    """Spell a word with commas between the letters."""

    def _conversation(self, word: str, rng: Random) -> Conversation:
        question = rng.choice(_ASK_SPELLING).format(word=word)
        answer = f"{word}: {','.join(word)}"
        return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}

    def evaluate(self, conversation: Conversation, completion: str, tool_calls: Sequence[str] = ()) -> bool:
        """Return whether the completion has the word's letters one by one, with any separator."""
        word, _, _ = conversation["messages"][-1]["content"].partition(":")
        return judge({"expect": {"spelled": word}}, completion, tool_calls)


def _words(path: str | Path | None) -> Sequence[str]:
    path = Path(__file__).with_name("words.txt") if path is None else path
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error}); give a file of words, one per line") from None
    for number, line in enumerate(lines, 1):
        if line.strip() and not re.fullmatch(r"[a-z]+", line.strip().lower()):
            raise UserError(f"{path}:{number}: {line.strip()[:40]!r} is not a word of letters a to z")
    words = [line.strip().lower() for line in lines if line.strip()]
    if not words:
        raise UserError(f"{path}: has no words")
    return words
