"""How an answer is generated: what the sliders of the page and /set in the terminal change."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.sampling import check_sampling


@dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """Checked when made, so that a mistake is told at the place where it was typed."""

    temperature: float = 0.6
    """0 takes the likeliest token, higher is more varied."""
    top_k: int = 50
    """Choose among this many likeliest tokens; 0 is all."""
    top_p: float = 1.0
    """Choose among the likeliest tokens that together have this probability; 1 is all."""
    max_new_tokens: int = 256
    """Longest answer in tokens."""
    seed: int = 0
    """The same seed gives the same answers to the same messages."""

    def __post_init__(self) -> None:
        check_sampling(self.temperature, self.top_k, self.top_p)
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}; ask for at least 1")

    def changed(self, name: str, value: object) -> "ChatSettings":
        """A copy with one setting changed.

        Args:
            name: Of a field.
            value: A number, or a number as text.

        Raises:
            UserError: If there is no such setting, or the value is impossible.
        """
        kinds = {field.name: type(field.default) for field in dataclasses.fields(self)}
        if name not in kinds:
            raise UserError(f"there is no setting {name!r}; use {', '.join(kinds)}")
        return dataclasses.replace(self, **{name: _number(name, value, kinds[name])})

    @classmethod
    def of(cls, values: dict[str, Any]) -> "ChatSettings":
        """The defaults with some of them replaced; None leaves one as it is.

        Raises:
            UserError: If a name is unknown, or a value impossible.
        """
        settings = cls()
        for name, value in values.items():
            settings = settings if value is None else settings.changed(name, value)
        return settings


def _number(name: str, value: object, kind: type) -> int | float:
    try:
        number = float(str(value))
        if isinstance(value, bool) or (kind is int and not number.is_integer()):
            raise ValueError
        return int(str(value)) if kind is int and not isinstance(value, float) else kind(number)
    except (ValueError, OverflowError):
        raise UserError(f"{name} is {value!r}; use a {'whole ' if kind is int else ''}number") from None
