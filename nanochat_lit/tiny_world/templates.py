"""The template files: words, tables and wordings of the small world, one YAML file per category."""

from functools import cache
from pathlib import Path
from random import Random
from typing import Any

FOLDER = Path(__file__).parent / "templates"


@cache
def template(name: str) -> dict[str, Any]:
    """The content of templates/NAME.yaml. Every scalar is a string: the word "no" is not a boolean here."""
    import yaml

    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    return yaml.load((FOLDER / f"{name}.yaml").read_text("utf-8"), loader)  # noqa: S506 - makes strings only


@cache
def template_names(key: str) -> tuple[str, ...]:
    """The template files with this key, in alphabetical order."""
    return tuple(path.stem for path in sorted(FOLDER.glob("*.yaml")) if key in template(path.stem))


def pick(rng: Random, name: str, key: str) -> Any:
    """One of the entries that a template file lists under a key."""
    return rng.choice(template(name)[key])


@cache
def names() -> tuple[str, ...]:
    """First names of the people of the world."""
    return (*template("lexicon")["he_names"], *template("lexicon")["she_names"])


@cache
def pronouns(name: str) -> tuple[str, str, str]:
    """The pronouns of a name: he, him, his or she, her, her."""
    return ("he", "him", "his") if name in template("lexicon")["he_names"] else ("she", "her", "her")
