"""Locates recipes and their fragments, in a checkout or in the installed package."""

from importlib.resources import files
from pathlib import Path

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.suggestions import nearest

_PACKAGED = (Path("recipes"), Path("configs/trainer"))


def find_recipe(argument: str) -> str:
    """Return the packaged file for `recipes/X.yaml` or `configs/trainer/X.yaml` outside a checkout, else the argument.

    Args:
        argument: A path, or --option=PATH.

    Raises:
        UserError: If neither has it.
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
