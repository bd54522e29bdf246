"""Which rows of a data set are texts to learn from; the others are passed over and reported."""

import logging
import re
from collections.abc import Callable
from typing import Any

from nanochat_lit.common.errors import UserError

MAX_DOC_CHARS = 10_000_000
"""A longer row is refused: encoding it would take minutes and many times its length in memory."""
_LOOK_CHARS = 1000
_MAX_CONTROL_SHARE = 0.1
_FEW_CONTROLS = 8
_CONTROL = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f-\x84\x86-\x9f\ufffd]")
_log = logging.getLogger(__name__)


class TextCheck:
    """The check of one file or stream, which reports the first row of each kind that it passes over.

    Args:
        column: Where the rows have their text, for messages.
        place: What a row is one of, for messages.
    """

    def __init__(self, column: str, place: str = "file") -> None:
        self._column = column
        self._place = place
        self._warned: set[str] = set()

    def text(self, value: Any, where: Callable[[], str]) -> str | None:
        """The text of a row; None if it is null, empty, binary, no UTF-8, or longer than MAX_DOC_CHARS.

        Args:
            value: What the row has in the column.
            where: Names the row.

        Raises:
            UserError: If it is nothing that could be text.
        """
        if value is None or value in ("", b""):
            return None
        if isinstance(value, bytes):
            try:
                value = value.decode("utf-8")
            except UnicodeDecodeError:
                return self._pass_over(where, "is not UTF-8 text")
        if not isinstance(value, str):
            raise UserError(f"{where()}: {self._column!r} is {type(value).__name__}, expected a string")
        if len(value) > MAX_DOC_CHARS:
            return self._pass_over(where, f"is longer than {MAX_DOC_CHARS:,} characters")
        start = value[:_LOOK_CHARS]
        if len(_CONTROL.findall(start)) > max(_FEW_CONTROLS, _MAX_CONTROL_SHARE * len(start)):
            return self._pass_over(where, "looks like binary data, not text")
        return value

    def _pass_over(self, where: Callable[[], str], reason: str) -> None:
        if reason not in self._warned:
            self._warned.add(reason)
            message = "%s: %r %s; it and others like it in this %s are passed over"
            _log.warning(message, where(), self._column, reason, self._place)
