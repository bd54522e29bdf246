"""Python as a tool that a model may call, for those who ask for it: what the calculator cannot do runs in the sandbox."""

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine import sandbox
from nanochat_lit.engine.calculator import MAX_RESULT_CHARS, calculate
from nanochat_lit.engine.sandbox import SandboxLimits

MAX_PROGRAM_CHARS = 4096
"""Longest program."""

MAX_SECONDS = 2
"""Longest time on the clock, and of processor time: others wait while a program runs."""

_PROMPT = """
import ast, sys
sys.displayhook = lambda value: None if value is None else print(value)
exec(compile(ast.Interactive(ast.parse({source!r}).body), "tool", "single"), {{"__name__": "__main__"}})
"""
"""Runs in the sandbox, as Python's prompt does: the value of every statement that is an expression is shown."""


def check_python_tool() -> None:
    """See that programs can be isolated here.

    Raises:
        UserError: If not; it says what is missing.
    """
    if problem := sandbox.missing_isolation():
        raise UserError(f"the Python tool: {problem}")


def run_tool(program: str) -> str | None:
    """What a program prints and what its expressions are worth, without spaces at the ends.

    Arithmetic and counting letters are left to the calculator, which takes no time. Everything else starts a process in the
    sandbox, about a tenth of a second during which its caller waits; it sees no file, no network, and nothing of an earlier call.

    Args:
        program: Python that a model has written.

    Returns:
        None if the program is too long, fails, is stopped, cannot be isolated, or says nothing or too much: as where the
        calculator has no answer, nothing is put into the model's mouth.
    """
    if (value := calculate(program)) is not None:
        return value
    if not program.strip() or len(program) > MAX_PROGRAM_CHARS:
        return None
    result = sandbox.run_python(_PROMPT.format(source=program), SandboxLimits(timeout_s=MAX_SECONDS, cpu_s=MAX_SECONDS))
    said = result.stdout.strip()
    return said if result.ok and 0 < len(said) <= MAX_RESULT_CHARS else None
