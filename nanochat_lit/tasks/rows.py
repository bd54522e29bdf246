"""Records of a data set, from a local file or the Hugging Face hub, with identical contents.

A record is a dict with the hub's field names. All records of a local file are checked before the first is used; hub
records, which have a schema, are checked on access. Errors name the file and the line.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from nanochat_lit.common.downloads import with_retries
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import UNPACK_ERRORS, open_unpacked
from nanochat_lit.tasks.base import Conversation

Row = dict[str, Any]
Check = Callable[[Row], str | None]
"""Returns the problem of a record, or None."""


class Rows:
    """Records in the order of the data set or a seeded order.

    Args:
        rows: The records; not copied.
        where: Returns the origin of record i, for errors.
        check: Returns the problem of a record, or None.
        seed: Seed of the order; None keeps the order of the data set.
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
    """A sequence of conversations, one per record of a data set.

    Args:
        rows: The records.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Conversation:
        return self._conversation(self.rows[index])

    @abstractmethod
    def _conversation(self, row: Row) -> Conversation:
        """Convert a record to a conversation."""


def load_rows(
    *, path: str | Path | None, hub: str, subset: str | None, split: str, check: Check, seed: int | None = 42
) -> Rows:
    """Load the records of a local file if a path is given, else of a hub data set.

    Args:
        path: A .jsonl (also .gz, .zst, .bz2 or .xz) or .parquet file.
        hub: Name of the data set on the Hugging Face hub.
        subset: Its configuration; None if it has only one.
        split: Split of the hub data set, such as "train" or "test"; a local file is one split.
        check: Returns the problem of a record, or None.
        seed: Seed of the order; None keeps the order of the data set.

    Raises:
        UserError: If the file is missing, empty or broken, or the hub cannot be reached.
    """
    if path is None:
        return Rows(_hub_rows(hub, subset, split), lambda place: f"{hub} ({split}), record {place}", check, seed)
    path = Path(path)
    if path.suffix.lower() == ".parquet":
        rows, lines = _parquet_rows(path), None
    else:
        rows, lines = read_jsonl(path)
    if not rows:
        raise UserError(f"{path}: has no records")

    def where(place: int) -> str:
        return f"{path}, record {place}" if lines is None else f"{path}:{lines[place]}"

    for place, row in enumerate(rows):
        if problem := check(row):
            raise UserError(f"{where(place)}: {problem}")
    return Rows(rows, where, check, seed)


def read_jsonl(path: Path) -> tuple[list[Row], list[int]]:
    """Return the objects of a JSONL file (decompressed by its suffix) and their line numbers.

    Raises:
        UserError: If the file cannot be read, or a line is not a JSON object.
    """
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


def _hub_rows(hub: str, subset: str | None, split: str) -> Sequence[Row]:
    import datasets

    hint = "; give a local file: path in a recipe, --paths of evaluate chat"
    return with_retries(
        lambda: datasets.load_dataset(hub, subset, split=split),
        f"the data set {hub} ({split}) of the Hugging Face hub",
        hint,
    )


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
