"""Records of a data set, from a local file or the Hugging Face hub, with identical contents.

A record is a dict with the hub's field names. All records of a local file are checked before the first is used; hub
records, which have a schema, are checked on access. Errors name the file and the line.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from nanochat_lit.common.downloads import with_retries
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import UNPACK_ERRORS, open_unpacked
from nanochat_lit.tasks.base import Conversation, multiple_choice_conversation

Row = dict[str, Any]


class RowTask(ABC):
    """A sequence of conversations, one per record of a local file or a hub data set, in its order or a seeded one.

    Args:
        path: A .jsonl (also .gz, .zst, .bz2 or .xz) or .parquet file; None uses the hub.
        hub: Name of the data set on the Hugging Face hub.
        split: Split of the hub data set, such as "train" or "test"; a local file is one split.
        subset: Configuration of the hub data set; None if it has only one.
        seed: Seed of the order; None keeps the order of the data set.

    Raises:
        UserError: If the file is missing, empty or broken, or the hub cannot be reached.
    """

    def __init__(
        self, path: str | Path | None, hub: str, split: str, subset: str | None = None, seed: int | None = 42
    ) -> None:
        self._rows, self._where = _hub_rows(hub, subset, split) if path is None else _file_rows(Path(path))
        for place in range(0 if path is None else len(self._rows)):
            self._checked(place)
        self._order: Sequence[int] = range(len(self._rows))
        if seed is not None:
            self._order = list(self._order)
            Random(seed).shuffle(self._order)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Conversation:
        return self._conversation(self._checked(self._order[index]))

    def _checked(self, place: int) -> Row:
        if problem := self._problem(self._rows[place]):
            raise UserError(f"{self._where(place)}: {problem}")
        return self._rows[place]

    @abstractmethod
    def _problem(self, row: Row) -> str | None:
        """Return the problem of a record, or None."""

    @abstractmethod
    def _conversation(self, row: Row) -> Conversation:
        """Convert a record to a conversation."""


class MultipleChoiceTask(RowTask):
    """Questions that are answered by the letter of a choice."""

    @abstractmethod
    def _fields(self, row: Row) -> tuple[str, Sequence[str], Sequence[str], str]:
        """Return question, choices, letters and correct letter of a record."""

    def _conversation(self, row: Row) -> Conversation:
        return multiple_choice_conversation(*self._fields(row))

    def evaluate(self, conversation: Conversation, completion: str, tool_calls: Sequence[str] = ()) -> bool:
        """Return whether the completion is the correct letter."""
        del tool_calls
        return completion.strip() == conversation["messages"][-1]["content"]


def _file_rows(path: Path) -> tuple[Sequence[Row], Callable[[int], str]]:
    """Return the records of a file, and a function that names the location of one."""
    if path.suffix.lower() == ".parquet":
        rows, lines = _parquet_rows(path), None
    else:
        rows, lines = read_jsonl(path)
    if not rows:
        raise UserError(f"{path}: has no records")
    return rows, lambda place: f"{path}, record {place}" if lines is None else f"{path}:{lines[place]}"


def read_jsonl(path: Path) -> tuple[list[Row], list[int]]:
    """Return the objects of a JSONL file (decompressed by its suffix) and their line numbers; UserErrors name the line."""
    rows: list[Row] = []
    lines: list[int] = []
    try:
        file, _ = open_unpacked(path)
        with file:  # as bytes, so that errors also name a line that is not UTF-8
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    reason = getattr(error, "msg", str(error))
                    raise UserError(f"{path}:{number}: not valid JSON ({reason})") from None
                if not isinstance(row, dict):
                    raise UserError(f"{path}:{number}: expected a JSON object, got {_short(row)}")
                rows.append(row)
                lines.append(number)
    except UNPACK_ERRORS as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise UserError(f"{path}: {reason}; give a .jsonl (also .gz, .zst) or .parquet file") from None
    return rows, lines


def _parquet_rows(path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: cannot be read as parquet ({reason})") from None


def _hub_rows(hub: str, subset: str | None, split: str) -> tuple[Sequence[Row], Callable[[int], str]]:
    import datasets

    rows = with_retries(
        lambda: datasets.load_dataset(hub, subset, split=split),
        f"the data set {hub} ({split}) of the Hugging Face hub",
        "; give a local file: path in a recipe, --paths of evaluate chat",
    )
    return rows, lambda place: f"{hub} ({split}), record {place}"


def missing_text(row: Row, *names: str) -> str | None:
    """Return the problem if one of these fields is not a non-empty string, else None."""
    for name in names:
        if name not in row:
            return f"no field {name!r} (fields: {', '.join(map(repr, row)) or 'none'})"
        if not isinstance(row[name], str) or not row[name].strip():
            return f"{name!r} must be text, got {_short(row[name])}"
    return None


def wrong_choices(choices: object) -> str | None:
    """Return the problem of the choices of a question, or None."""
    if not isinstance(choices, (list, tuple)) or len(choices) < 2 or not all(isinstance(c, str) for c in choices):
        return f"the choices must be a list of at least two texts, got {_short(choices)}"
    return None


def wrong_place(name: str, value: object, choices: Sequence[str]) -> str | None:
    """Return the problem if the index of the correct choice is out of range, else None."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(choices):
        return None
    return f"{name!r} is {_short(value)}, which is not one of the {len(choices)} choices (0 to {len(choices) - 1})"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
