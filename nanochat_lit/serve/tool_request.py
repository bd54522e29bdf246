"""Parses `tools`, `tool_choice` and `parallel_tool_calls` of a chat request. Pure functions; invalid ones raise ApiError.

With tool_choice "required" or a named function, and wherever the answer has a format, constrained decoding makes the
calls match the functions' parameters. Otherwise the model is free to write anything, calls included.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nanochat_lit.common.tool_format import call_prefix, call_suffix
from nanochat_lit.engine.grammar import json_rule
from nanochat_lit.serve.request_fields import MAX_FORMAT_CHARS, bad_field, boolean, checked_grammar, kind_of, short

MAX_TOOLS = 64

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, kw_only=True)
class Tools:
    """The functions of a client."""

    functions: tuple[dict[str, Any], ...] = ()
    """With name, description and parameters; empty if none may be called."""
    max_calls: int | None = None
    """Maximum number of calls in an answer."""
    grammar: str = ""
    """Grammar of the answer; empty if the model is free."""

    @property
    def names(self) -> list[str]:
        """Names of the functions."""
        return [function["name"] for function in self.functions]


def parse_tools(body: Mapping[str, Any], answer: str) -> Tools:
    """Check the fields about functions; `answer` is the grammar of an answer without calls, empty for any.

    Raises:
        ApiError: 400 with the field's name.
    """
    functions = _functions(body.get("tools"))
    names = [function["name"] for function in functions]
    is_parallel = body.get("parallel_tool_calls") is None or boolean(body, "parallel_tool_calls")
    choice = body.get("tool_choice")
    is_auto = choice in (None, "auto")
    if choice == "none" or (is_auto and not functions):
        return Tools(grammar=answer)
    if answer and not is_auto:
        raise bad_field("tool_choice", 'tool_choice must be "auto" or "none" with an answer in a given format')
    if not is_auto and choice != "required":
        inner = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
        name = inner.get("name") if isinstance(inner, dict) else None
        if not isinstance(name, str):
            form = '"none", "auto", "required" or {"type": "function", "function": {"name": ...}}'
            raise bad_field("tool_choice", f"tool_choice must be {form}, not {short(choice)}")
        if name not in names:
            raise bad_field("tool_choice", f"tool_choice names {short(name)}, which is not among the tools")
        functions, is_parallel = [function for function in functions if function["name"] == name], False
    if not functions:
        raise bad_field("tool_choice", 'tool_choice "required" needs tools; add some')
    grammar = ""
    if answer or not is_auto:
        grammar = checked_grammar(lambda all_: _grammar(all_, is_parallel, answer), functions, "tools")
    return Tools(functions=tuple(functions), max_calls=None if is_parallel else 1, grammar=grammar)


def _functions(tools: object) -> list[dict[str, Any]]:
    if tools is None:
        return []
    if not isinstance(tools, list) or len(tools) > MAX_TOOLS:
        given = f"{len(tools)} of them" if isinstance(tools, list) else kind_of(tools)
        raise bad_field("tools", f"tools must be a list of at most {MAX_TOOLS} functions, not {given}")
    functions = [_function(tool, f"tools[{index}]") for index, tool in enumerate(tools)]
    if len({function["name"] for function in functions}) < len(functions):
        raise bad_field("tools", "two tools have the same name; give each its own")
    if (size := len(json.dumps(functions))) > MAX_FORMAT_CHARS:
        raise bad_field("tools", f"the tools have {size} characters; at most {MAX_FORMAT_CHARS} are allowed")
    return functions


def _function(tool: object, where: str) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
    if not isinstance(function, dict):
        raise bad_field(
            where, f'{where} must be {{"type": "function", "function": {{"name": ...}}}}, not {kind_of(tool)}'
        )
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise bad_field(
            f"{where}.function.name", f"{where}.function.name must match {_NAME.pattern}, not {short(name)}"
        )
    description, parameters = function.get("description") or "", function.get("parameters") or {}
    if not isinstance(description, str) or not isinstance(parameters, dict):
        raise bad_field(where, f"{where}.function must have a string as description and a JSON schema as parameters")
    return {"name": name, "description": description, "parameters": parameters}


def _grammar(functions: list[dict[str, Any]], is_parallel: bool, answer: str) -> str:
    """Return the grammar of calls, or of an answer, if its grammar is given."""
    calls = "call+" if is_parallel else "call"
    lines = [f"start: {calls} | answer" if answer else f"start: {calls}"]
    lines += [answer.replace("start:", "answer:", 1)] if answer else []
    lines.append("call: " + " | ".join(f"call_{number}" for number in range(len(functions))))
    for number, function in enumerate(functions):
        before, after = json.dumps(call_prefix(function["name"])), json.dumps(call_suffix())
        lines.append(f"call_{number}: {before} arguments_{number} {after}")
        # one schema per function, because references are relative to its root
        schema = {"type": "object", **function["parameters"]} if function["parameters"] else _NO_PARAMETERS
        lines.append(f"arguments_{number}: {json_rule(schema)}")
    return "\n".join(lines)


_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}
