"""Optional Python tool: calls that the calculator cannot evaluate run in the sandbox."""

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine import sandbox
from nanochat_lit.engine.calculator import MAX_RESULT_CHARS, calculate
from nanochat_lit.engine.sandbox import SandboxLimits

MAX_PROGRAM_CHARS = 4096
"""Maximum length of a program."""

MAX_SECONDS = 2
"""Limit of wall-clock and CPU time in seconds; decoding waits for the program."""

_PROMPT = """
import ast, sys
sys.displayhook = lambda value: None if value is None else print(value)
exec(compile(ast.Interactive(ast.parse({source!r}).body), "tool", "single"), {{"__name__": "__main__"}})
"""
"""Program template: like an interactive session, prints the value of every expression statement."""


def check_python_tool() -> None:
    """Check that the sandbox is available; raises UserError that names the missing feature."""
    if problem := sandbox.missing_isolation():
        raise UserError(f"the Python tool: {problem}")


def run_tool(program: str) -> str | None:
    """Return the output of a program and the values of its expressions, stripped.

    The calculator handles arithmetic and counting letters. Other programs start a sandbox process, which takes about
    0.1 s and has no access to files, the network or earlier calls. The output is None if the program is too long,
    fails, exceeds a limit, cannot be isolated, or prints nothing or too much.
    """
    if (value := calculate(program)) is not None:
        return value
    if not program.strip() or len(program) > MAX_PROGRAM_CHARS:
        return None
    result = sandbox.run_python(_PROMPT.format(source=program), SandboxLimits(timeout_s=MAX_SECONDS, cpu_s=MAX_SECONDS))
    said = result.stdout.strip()
    return said if result.ok and 0 < len(said) <= MAX_RESULT_CHARS else None
