"""Errors of the HTTP API in OpenAI's format."""

import json
from typing import Any

_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An error response.

    Args:
        status: HTTP status.
        message: Human-readable message with the value, the limit and the fix.
        param: Invalid field of the request.
        code: Machine-readable code.
        retry_after_s: Value of the Retry-After header, seconds.
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
        """Return the JSON body of the response."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Return the additional headers of the response."""
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def bad_field(param: str, message: str, code: str | None = None) -> ApiError:
    """Return an error with status 400 for a field of the request."""
    return ApiError(400, message, param=param, code=code)


def kind_of(value: object) -> str:
    """Return the JSON type of a value, for messages."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def short(value: object) -> str:
    """Format a value for messages; escapes lone surrogates, which cannot be encoded, and omits nested values."""
    if isinstance(value, dict | list):
        return kind_of(value)
    text = json.dumps(value) if isinstance(value, int | float) else repr(value)
    text = text if text.isprintable() else ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
