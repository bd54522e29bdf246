"""The one error that is meant for the person at the keyboard, and its form where an optional package is missing."""


class UserError(ValueError):
    """A mistake that the user can fix; the command line shows its message without a traceback.

    The message is one or two lines and names the value, the limit and the fix.
    """


def missing_package(purpose: str, package: str | None, extra: str) -> UserError:
    """The error of something that needs an optional package, with the command that installs it.

    Args:
        purpose: What was asked for, as the beginning of a sentence.
        package: Name of what could not be imported.
        extra: The extra of this project that brings it.
    """
    return UserError(f"{purpose} needs {package}; pip install '.[{extra}]' in the checkout, or 'nanochat-lit[{extra}]'")
