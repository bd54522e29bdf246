"""Class paths in recipes, such as my_module.MyClass."""

import importlib
import sys
from pathlib import Path
from typing import Any

from nanochat_lit.common.errors import UserError


def put_current_folder_on_path() -> None:
    """Add the current folder to sys.path, as `python -m` does, for class paths in recipes."""
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.append(folder)


def import_class(class_path: str, what: str) -> type[Any]:
    """Import the class of a class path; the current folder is on the import path.

    Importing a module runs its code: call this only with names given by the user.

    Raises:
        UserError: If the module or the class does not exist.
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
