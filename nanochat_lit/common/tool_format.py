"""How functions of a client, calls of them and their results are written as text. Pure functions, for training and serving.

The tags are those of Hermes and Qwen, so that other servers' parsers for these (vLLM's `hermes`) read the calls, too. A
conversation with one call:

    user:       You can call these functions:
                {"name": "get_time", "description": "Local time", "parameters": {"type": "object", ...}}
                To call one, write <tool_call>{"name": ..., "arguments": {...}}</tool_call>

                What time is it in Rome?
    assistant:  <tool_call>{"name": "get_time", "arguments": {"city": "Rome"}}</tool_call>
    user:       <tool_response>14:05</tool_response>
    assistant:  It is 14:05.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

CALL_START, CALL_END = "<tool_call>", "</tool_call>"
RESULT_START, RESULT_END = "<tool_response>", "</tool_response>"


class ToolCall(NamedTuple):
    """A call of a function."""

    name: str
    arguments: dict[str, Any]

    def as_strings(self) -> dict[str, str]:
        """Return name and arguments as in OpenAI's API, where the arguments are JSON in a string."""
        return {"name": self.name, "arguments": json.dumps(self.arguments, ensure_ascii=False)}


def render_tools(functions: Sequence[Mapping[str, Any]]) -> str:
    """Return the text that offers functions to the model, at the beginning of the user's first turn.

    Each has `name` and, optionally, `description` and `parameters` (a JSON schema), as in OpenAI's API.
    """
    shown = [
        json.dumps({key: one[key] for key in ("name", "description", "parameters") if one.get(key)}, ensure_ascii=False)
        for one in functions
    ]
    form = f'{CALL_START}{{"name": ..., "arguments": {{...}}}}{CALL_END}'
    return "\n".join(["You can call these functions:", *shown, f"To call one, write {form}"])


def call_prefix(name: str) -> str:
    """Return the text of a call up to its arguments."""
    return f'{CALL_START}{{"name": {json.dumps(name)}, "arguments": '


def call_suffix() -> str:
    """Return the text of a call after its arguments."""
    return "}" + CALL_END


def render_call(call: ToolCall) -> str:
    """Return the text of a call, part of the assistant's turn."""
    arguments = json.dumps(call.arguments, ensure_ascii=False).replace(
        "</", "<\\/"
    )  # the same in JSON, and not the end
    return call_prefix(call.name) + arguments + call_suffix()


def render_results(results: Sequence[str]) -> str:
    """Return the text of the results of an assistant's calls, in their order: the beginning of the next user turn."""
    return "\n\n".join(f"{RESULT_START}{result}{RESULT_END}" for result in results)


def parse_call(text: str) -> ToolCall | None:
    """Return the call that is written between the tags, or None if it is not one."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or set(found) != {"name", "arguments"}:
        return None
    if not isinstance(found["name"], str) or not isinstance(found["arguments"], dict):
        return None
    return ToolCall(**found)


class CallParser:
    """Splits the text of an answer, as it is generated, into text and calls.

    A call is returned when it is complete. Text between the tags that is not a call of an offered function stays text.
    Calls beyond `max_calls` are dropped.
    """

    def __init__(self, names: Sequence[str], max_calls: int | None = None) -> None:
        self._names, self._max_calls = frozenset(names), max_calls
        self._held = ""
        self.num_calls = 0
        """Number of calls so far."""

    def push(self, text: str) -> list[str | ToolCall]:
        """Return what is final with the next part of the text."""
        self._held += text
        found: list[str | ToolCall] = []
        while CALL_START in self._held:
            before, _, after = self._held.partition(CALL_START)
            inside, end, rest = after.partition(CALL_END)
            if before:
                found.append(before)
            self._held = CALL_START + after
            if not end:
                return found
            self._held = rest
            call = parse_call(inside)
            if call is None or call.name not in self._names:
                found.append(CALL_START + inside + CALL_END)
            elif self._max_calls is None or self.num_calls < self._max_calls:
                self.num_calls += 1
                found.append(call)
        kept = next(n for n in range(len(CALL_START) - 1, -1, -1) if self._held.endswith(CALL_START[:n]))
        final = self._held[: len(self._held) - kept]
        self._held = self._held[len(final) :]
        return [*found, final] if final else found

    def finish(self) -> list[str | ToolCall]:
        """Return the rest at the end of the answer, or of the text before something else; the parser starts again."""
        rest, self._held = self._held, ""
        return [rest] if rest else []
