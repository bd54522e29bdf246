"""The rows of a data set: from a local file, or from the Hugging Face hub; the same rows either way.

A row is a dict with the hub's field names. Rows are checked before the first is used: of a local file every one, of the
hub's when it is read (they have a schema). Errors name the file and the line.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from nanochat_lit.common.compressed import UNPACK_ERRORS, open_unpacked
from nanochat_lit.common.downloads import with_retries
from nanochat_lit.common.errors import UserError
from nanochat_lit.tasks.base import Conversation

Row = dict[str, Any]
Check = Callable[[Row], str | None]
"""Says what is wrong with a row, or None."""


class Rows:
    """Rows in the order of the data set, or in one drawn from a seed.

    Args:
        rows: The rows; they are not copied.
        where: Says where row i comes from, for errors.
        check: Says what is wrong with a row.
        seed: Of the order; None keeps that of the data set.
    """

    def __init__(self, rows: Sequence[Row], where: Callable[[int], str], check: Check, seed: int | None = None) -> None:
        self._rows = rows
        self._where = where
        self._check = check
        self._order: Sequence[int] = range(len(rows))
        if seed is not None:
            self._order = list(self._order)
            Random(seed).shuffle(self._order)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Row:
        place = self._order[index]
        row = self._rows[place]
        if problem := self._check(row):
            raise UserError(f"{self._where(place)}: {problem}")
        return row

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))


class RowTask(ABC):
    """A sequence of conversations, each made of one row of a data set.

    Args:
        rows: The rows.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Conversation:
        return self._conversation(self.rows[index])

    @abstractmethod
    def _conversation(self, row: Row) -> Conversation:
        """The conversation that a row gives."""


def load_rows(
    *,
    path: str | Path | None,
    hub: str,
    subset: str | None,
    split: str,
    check: Check,
    seed: int | None = 42,
) -> Rows:
    """Rows of a local file if a path is given, else of the hub.

    Args:
        path: A .jsonl (also .gz, .zst, .bz2 or .xz) or .parquet file.
        hub: Name of the data set on the Hugging Face hub.
        subset: Its configuration; None for the only one.
        split: "train", "test" or another that it has; a local file is one split.
        check: Says what is wrong with a row.
        seed: Of the order; None keeps that of the data set.

    Raises:
        UserError: If the file is missing, empty or broken, or the hub cannot be reached.
    """
    if path is None:
        return Rows(_hub_rows(hub, subset, split), lambda place: f"{hub} ({split}), row {place}", check, seed)
    path = Path(path)
    if path.suffix.lower() == ".parquet":
        rows, lines = _parquet_rows(path), None
    else:
        rows, lines = read_jsonl(path)
    if not rows:
        raise UserError(f"{path}: holds no rows")

    def where(place: int) -> str:
        return f"{path}, row {place}" if lines is None else f"{path}:{lines[place]}"

    for place, row in enumerate(rows):
        if problem := check(row):
            raise UserError(f"{where(place)}: {problem}")
    return Rows(rows, where, check, seed)


def read_jsonl(path: Path) -> tuple[list[Row], list[int]]:
    """The objects of a JSONL file (compressed if its name says so), and the number of each one's line.

    Args:
        path: The file; blank lines are passed over.

    Raises:
        UserError: If the file cannot be read, or a line is not a JSON object.
    """
    rows: list[Row] = []
    lines: list[int] = []
    try:
        file, _ = open_unpacked(path)
        with file:  # as bytes, so that a line that is not UTF-8 is named too
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


def _hub_rows(hub: str, subset: str | None, split: str) -> Sequence[Row]:
    import datasets

    hint = "; give a local file: path in a recipe, --paths of evaluate chat"
    return with_retries(
        lambda: datasets.load_dataset(hub, subset, split=split),
        f"the data set {hub} ({split}) of the Hugging Face hub",
        hint,
    )


def missing_text(row: Row, *names: str) -> str | None:
    """What is wrong if one of these fields is not a string that says something.

    Args:
        row: The row.
        names: Its fields.
    """
    for name in names:
        if name not in row:
            return f"no field {name!r} (fields: {', '.join(map(repr, row)) or 'none'})"
        if not isinstance(row[name], str) or not row[name].strip():
            return f"{name!r} must be text, got {_short(row[name])}"
    return None


def wrong_choices(choices: object) -> str | None:
    """What is wrong with the choices of a question.

    Args:
        choices: What the row has.
    """
    if not isinstance(choices, (list, tuple)) or len(choices) < 2 or not all(isinstance(c, str) for c in choices):
        return f"the choices must be a list of at least two texts, got {_short(choices)}"
    return None


def wrong_place(name: str, value: object, choices: Sequence[str]) -> str | None:
    """What is wrong if the number of the right choice is none of theirs.

    Args:
        name: Of the field.
        value: What it holds.
        choices: What it counts.
    """
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(choices):
        return None
    return f"{name!r} is {_short(value)}, which is none of the {len(choices)} choices (0 to {len(choices) - 1})"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
