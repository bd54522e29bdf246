"""What a mistyped option was meant to be."""

import difflib
import re
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown word.

    Args:
        word: What was given.
        known: What is allowed.

    Returns:
        The most similar known word as a question, or all of them.
    """
    names = list(known)
    matches = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean {matches[0]!r}?" if matches else f"; choose one of {', '.join(names)}"


def explain_unrecognized(message: str, options: Iterable[str]) -> str:
    """A message of argparse about unrecognized or missing arguments, with what was probably meant.

    Args:
        message: Of the parser.
        options: All options, with their leading dashes.
    """
    if missing := re.search(r"arguments are required: (.+)$", message):
        names = [name.strip().rpartition("fit.")[2].lstrip("-") for name in missing[1].split(",")]
        return f"missing: {', '.join(f'--{name}' for name in names)}"
    unknown = re.search(r"unrecognized arguments: (\S+)", message)
    if unknown is None:
        return message
    word, known = unknown[1].partition("=")[0], sorted(set(options))
    if not word.startswith("-"):
        if word.endswith((".yaml", ".yml")):
            return f"{message}; a recipe is given with its name: --config {word}"
        return f"{message}; values are given with a name: --NAME VALUE"
    leaf = word.lstrip("-")
    same_end = [option for option in known if option.rpartition(".")[2].lstrip("-") == leaf]
    found = same_end or difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    if not found:  # the right end, under a mistyped or another name
        found = difflib.get_close_matches(word, [option for option in known if "." in option], n=1, cutoff=0.6)
    return f"{message}; did you mean {' or '.join(found[:2])}?" if found else message
