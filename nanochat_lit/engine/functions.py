"""Python functions that a model may call in its answers, in the format of `common/tool_format.py`.

A call ends the assistant's turn, the results are the user's next one, and the answer continues. In the server the client
runs the functions; here they run in a separate process with a time limit. It isolates training from functions that
hang, crash or print, but has all its rights: for programs written by a model, offer `python_tool.run_tool`, which runs
them in the sandbox.
"""

import copy
import inspect
import json
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, get_origin

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.tool_format import CallParser, ToolCall, render_tools
from nanochat_lit.tokenizer.chat import Conversation

MAX_RESULT_CHARS = 512
"""Longer results are cut, so that they do not fill the model's context."""

START_S = 60
"""Time limit of importing the functions' modules, in seconds."""

_JSON_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}


class Functions:
    """Functions by name; errors of a call are results, too, so that a model can learn from them.

    Args:
        functions: Importable functions or instances. The model reads the name, the signature and the first paragraph
            of the docstring.
        max_calls: Maximum number of calls in one answer; it ends with the next one.
        timeout_s: Time limit of a call, in seconds.

    Raises:
        UserError: If a function has no signature or cannot be used in another process, or a limit is not positive.
    """

    def __init__(self, functions: Mapping[str, Callable[..., Any]], max_calls: int = 4, timeout_s: float = 5.0) -> None:
        if max_calls < 1 or not timeout_s > 0:
            raise UserError(f"max_calls is {max_calls} and tool_timeout_s {timeout_s}; both must be positive")
        self.descriptions = {name: _description(name, function) for name, function in functions.items()}
        self.max_calls = max_calls
        self._process = _Process(functions, timeout_s)

    def __len__(self) -> int:
        return len(self.descriptions)

    def of(self, conversation: Conversation) -> "Functions":
        """Return the functions that a conversation offers: those named in its `tools`, by default all.

        Raises:
            UserError: If a name is unknown.
        """
        if (names := conversation.get("tools")) is None:
            return self
        known = ", ".join(self.descriptions) or "none"
        if not isinstance(names, list) or not all(
            isinstance(name, str) and name in self.descriptions for name in names
        ):
            raise UserError(f"a conversation has tools {names!r}; use a list of the names of model.tools: {known}")
        offered = copy.copy(self)
        offered.descriptions = {name: self.descriptions[name] for name in names}
        return offered

    def offer(self, conversation: Conversation) -> Conversation:
        """Return the conversation with the functions' descriptions at its start."""
        if not self.descriptions:
            return conversation
        offer, messages = render_tools(list(self.descriptions.values())), conversation["messages"]
        if messages[0]["role"] == "system":
            offer, messages = f"{messages[0]['content']}\n\n{offer}", messages[1:]
        return {**conversation, "messages": [{"role": "system", "content": offer}, *messages]}

    def results(self, text: str, max_calls: int) -> list[str]:
        """Run the calls in a turn of the assistant, and return the result of each, in their order."""
        parser = CallParser(list(self.descriptions), max_calls)
        return [self._process.call(found) for found in parser.push(text) if isinstance(found, ToolCall)]


def _description(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(function, eval_str=True).parameters.values()
    except (ValueError, TypeError, NameError) as error:
        raise UserError(f"the signature of the tool {name} cannot be read: {error}; wrap it in a function") from None
    types = {one.name: _JSON_TYPES.get(get_origin(one.annotation) or one.annotation) for one in parameters}
    schema = {
        "type": "object",
        "properties": {name: {"type": kind} if kind else {} for name, kind in types.items()},
        "required": [one.name for one in parameters if one.default is one.empty],
    }
    says = (inspect.getdoc(function) or "").partition("\n\n")[0].replace("\n", " ")
    return {"name": name, "description": says, "parameters": schema}


class _Process:
    """A process that runs one call after the other; restarted after one that did not return.

    It ends with this object, whose end of the pipe closes, and with this process.
    """

    def __init__(self, functions: Mapping[str, Callable[..., Any]], timeout_s: float) -> None:
        try:
            self._functions = pickle.dumps(dict(functions))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise UserError(f"a function of tools cannot be imported by another process: {error}") from None
        self._timeout_s = timeout_s
        self._running: tuple[Any, Connection] | None = None

    def call(self, call: ToolCall) -> str:
        """Return the result of a call, or a line that begins with "error: "."""
        process, connection = self._running or self._start()
        try:
            connection.send_bytes(json.dumps(call).encode())
            if connection.poll(self._timeout_s):
                return connection.recv_bytes().decode()
            problem = f"no result within {self._timeout_s:g} s"
        except (EOFError, OSError):
            problem = "the function ended its process"
        process.kill()
        process.join()
        self._running = None
        return f"error: {problem}"

    def _start(self) -> tuple[Any, Connection]:
        context = multiprocessing.get_context("spawn")
        connection, other = context.Pipe()
        process = context.Process(target=_serve, args=(self._functions, other, self._timeout_s), daemon=True)
        process.start()
        other.close()
        with suppress(EOFError):
            if connection.poll(START_S) and connection.recv_bytes():
                self._running = process, connection
                return self._running
        process.kill()
        raise UserError("the functions of tools cannot be imported by another process; the error is printed above")


def _serve(functions: bytes, connection: Connection, timeout_s: float) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the training process, which may finish its step
    by_name = pickle.loads(functions)  # noqa: S301 - written by the process that started this one
    connection.send_bytes(b"ready")
    # if the training process is killed, it cannot end a call that hangs
    set_timer = getattr(signal, "setitimer", lambda *_: None)
    timer = getattr(signal, "ITIMER_REAL", None)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):  # what functions print is dropped
        os.dup2(nowhere, descriptor)
    with suppress(EOFError):
        while True:
            name, arguments = json.loads(connection.recv_bytes())
            set_timer(timer, 2 * timeout_s)
            result = _result(by_name[name], arguments)
            set_timer(timer, 0)
            connection.send_bytes(result.encode("utf-8", "replace"))


def _result(function: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    try:
        value = function(**arguments)
        if value is None:
            return "error: no result"
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    except BaseException as error:  # noqa: BLE001 - whatever a function raises is the model's to read
        text = f"error: {type(error).__name__}: {error}"
    return text if len(text) <= MAX_RESULT_CHARS else text[: MAX_RESULT_CHARS - 3] + "..."
