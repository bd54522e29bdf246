"""Errors of the HTTP interface, in the shape that OpenAI's clients read."""

import json
from typing import Any

_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer other than success.

    Args:
        status: HTTP status.
        message: For a person: names the value, the limit and the fix.
        param: The field of the request that is wrong.
        code: A word for programs.
        retry_after_s: When to try again, sent as Retry-After.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        """The response's JSON."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """The response's additional headers."""
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def bad_field(param: str, message: str, code: str | None = None) -> ApiError:
    """Status 400 for a field of the request."""
    return ApiError(400, message, param=param, code=code)


def kind_of(value: object) -> str:
    """The JSON type of a value, for messages."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def short(value: object) -> str:
    """A value for messages; lone surrogates, which no response can carry, are escaped, and nested values are not shown."""
    if isinstance(value, dict | list):
        return kind_of(value)
    text = json.dumps(value) if isinstance(value, int | float) else repr(value)
    text = text if text.isprintable() else ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
