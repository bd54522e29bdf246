"""Recipes: their files, in a checkout or in the installed package, their class paths, and hints for wrong options."""

import difflib
import importlib
import re
import sys
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from nanochat_lit.common.errors import UserError

_PACKAGED = (Path("recipes"), Path("configs/trainer"))


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the end of an error about an unknown word: the most similar word as a question, or a list of all words."""
    names = list(known)
    matches = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean {matches[0]!r}?" if matches else f"; choose one of {', '.join(names)}"


def explain_unrecognized(message: str, options: Iterable[str]) -> str:
    """Add a suggestion to argparse's message about unrecognized or missing arguments."""
    if missing := re.search(r"arguments are required: (.+)$", message):
        names = [name.strip().rpartition("fit.")[2].lstrip("-") for name in missing[1].split(",")]
        recipe = "; a recipe has them: --config recipes/cpu_text.yaml" if names == ["data", "model"] else ""
        return f"missing: {', '.join(f'--{name}' for name in names)}{recipe}"
    unknown = re.search(r"unrecognized arguments: (\S+)", message)
    if unknown is None:
        return message
    word, known = unknown[1].partition("=")[0], sorted(set(options))
    if not word.startswith("-"):
        if word.endswith((".yaml", ".yml")):
            return f"{message}; recipes need an option name: --config {word}"
        name = next((name for name in ("--model", "--data", "--out") if name in known), "--NAME")
        return f"{message}; values need an option name: {name} {word if name != '--NAME' else 'VALUE'}"
    leaf = word.lstrip("-")
    same_end = [option for option in known if option.rpartition(".")[2].lstrip("-") == leaf]
    found = same_end or difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    if not found:  # match by the last part of the name
        found = difflib.get_close_matches(word, [option for option in known if "." in option], n=1, cutoff=0.6)
    return f"{message}; did you mean {' or '.join(found[:2])}?" if found else message


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the keys of a YAML file; UserErrors name the file and the line, unlike the parser's own message."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise UserError(f"{path} is nested too deeply; a recipe looks like those in recipes/") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise UserError(f"{place} is not valid YAML: {getattr(error, 'problem', None) or error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8; give a recipe, a .yaml file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read as a recipe: {error.strerror}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} has no keys; a recipe looks like those in recipes/")
    return content


def find_recipe(argument: str) -> str:
    """Return the packaged file for `recipes/X.yaml` or `configs/trainer/X.yaml` outside a checkout, else the argument.

    The argument is a path, or --option=PATH. Raises UserError if neither has it.
    """
    option, equals, value = argument.rpartition("=")
    path = Path(value)
    known = next((folder for folder in _PACKAGED if path.parent.parts[-len(folder.parts) :] == folder.parts), None)
    if known is None or path.suffix != ".yaml" or path.exists():
        return argument
    package = Path(str(files("nanochat_lit")))
    names: list[str] = []
    for folder in (package / known, package.parent / known):  # installed; in a checkout
        if (folder / path.name).is_file():
            return f"{option}{equals}{folder / path.name}"
        names += [(known / found.name).as_posix() for found in folder.glob("*.yaml")]
    raise UserError(f"recipe {value} does not exist{nearest((known / path.name).as_posix(), sorted(names))}")


def put_current_folder_on_path() -> None:
    """Add the current folder to sys.path, as `python -m` does, for class paths in recipes."""
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.append(folder)


def import_class(class_path: str, what: str) -> type[Any]:
    """Import the class of a class path, or raise UserError; the current folder is on the import path.

    Importing a module runs its code: call this only with names given by the user.
    """
    module_name, _, name = class_path.rpartition(".")
    put_current_folder_on_path()
    try:
        found = getattr(importlib.import_module(module_name), name) if module_name else None
    except (ImportError, AttributeError) as error:
        raise UserError(f"{what} {class_path} cannot be imported: {error}") from None
    if not isinstance(found, type):
        raise UserError(f"{what} {class_path} is not a class; give a class path such as my_module.MyClass")
    return found
