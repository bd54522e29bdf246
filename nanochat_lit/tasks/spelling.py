"""Counting letters (with the tool) and spelling words, which models must learn because they see tokens.

Every question is generated from its index, so the tasks need no file; a list of words is optional.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from random import Random

from nanochat_lit.common.errors import UserError
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


WORDS = tuple(
    """
    about above across address after again against almost alone along already although always among amount animal
    answer apple arrange arrive article autumn balance banana basket battle beautiful because become bedroom before
    begin believe between bicycle birthday blanket bottle branch breakfast bridge bright brother building butter
    butterfly calendar camera candle captain carrot castle center chapter cheese cherry children chocolate circle
    classroom clothes coconut collect committee compare complete computer consider country courage cousin cucumber
    daughter december decide delicious different difficult dinner discover distance doctor dragon dream elephant
    embarrass engine enough evening example excellent exercise explain family favorite feather february finger
    flower forest forward friend garden general giraffe glasses grammar grandmother grass guitar happiness harbor
    heavy history holiday honey horizon hospital hundred hungry imagine important indeed insect interest island
    january jelly journey july jungle kangaroo keyboard kitchen kitten knowledge ladder language laughter leather
    lemon lesson letter library listen little machine market marvelous meadow measure medicine memory mirror
    mississippi moment monkey morning mountain mushroom music narrow nature necessary needle neighbor notebook
    november ocean october orange orchestra parallel parrot pattern peaceful pencil pepper perhaps picture pillow
    pineapple planet pleasant popular possible potato practice present problem promise puzzle quarter question
    rabbit rainbow raspberry recommend remember restaurant rhythm river rocket sandwich saturday school science
    season separate september shadow shoulder silver simple sister skeleton soldier spaghetti special spring
    squirrel station strawberry street strength success sudden summer sunday sweater swimming teacher telephone
    temperature thirteen thousand thunder together tomato tomorrow tongue travel treasure tuesday umbrella uncle
    university vegetable vehicle village violin volcano weather wednesday welcome whisper willow window winter
    wonderful yellow yesterday zebra
    """.split()  # noqa: SIM905 - a list literal would take a line a word
)
"""Unique words in alphabetical order."""


class WordTask(ABC):
    """Questions about words, each generated from its index.

    Args:
        size: Number of questions; question i does not depend on the size.
        split: "train" or "test".
        path: File of words, one per line; None uses a built-in list.
    """

    def __init__(self, size: int = 1000, split: str = "train", path: str | Path | None = None) -> None:
        if size < 1:
            raise UserError(f"size is {size}; it must be at least 1")
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
    if path is None:
        return WORDS
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
