"""Python files of a Hugging Face folder: an adapter to transformers, and copies of the model's files.

Imports are rewritten to relative ones, because transformers copies only files that are imported relatively.
"""

import ast
import inspect
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from nanochat_lit.common.errors import UserError
from nanochat_lit.model.gpt import GPT

PACKAGE = "nanochat_lit"
CONFIGURATION, MODELLING = "configuration_nanochat_lit", "modeling_nanochat_lit"

_HOMES = {
    **{f"{PACKAGE}.engine.hf_folder.{name}": name for name in (CONFIGURATION, MODELLING)},
    **{f"{PACKAGE}.model.{name}": name for name in ("config", "layers", "rotary", "transformer")},
    f"{PACKAGE}.common.errors": "errors",
}
"""Modules included in every folder, and their names there."""

_REEXPORTING = (PACKAGE, f"{PACKAGE}.model", f"{PACKAGE}.model.gpt")
_REEXPORTED = {"GPT": "from .transformer import Transformer as GPT", "GPTConfig": "from .config import GPTConfig"}
"""Names that a variant may import from the package; losses and kernels of GPT are not included."""

_BASE_IMPORT = "from .transformer import Transformer as Architecture"

CODE_FILES = {f"{name}.py" for name in _HOMES.values()}


def code_files(model_class: type[GPT]) -> dict[str, str]:
    """Return the files' texts by name; raises UserError if a variant imports what the folder does not have."""
    texts = {f"{name}.py": _carried(_source(module), module) for module, name in _HOMES.items()}
    if model_class is not GPT:
        path = Path(inspect.getfile(model_class))
        if path.name in texts:
            raise UserError(f"{path}: the exported folder has a {path.name} of its own; rename the file")
        texts[path.name] = _carried(path.read_text(encoding="utf-8"), str(path))
        own_import = f"from .{path.stem} import {model_class.__name__} as Architecture"
        for name in (f"{CONFIGURATION}.py", f"{MODELLING}.py"):
            texts[name] = texts[name].replace(_BASE_IMPORT, own_import)
    return texts


def _source(module: str) -> str:
    package, _, name = module.rpartition(".")
    return files(package).joinpath(f"{name}.py").read_text(encoding="utf-8")


def _carried(text: str, source: str) -> str:
    """Return the text with imports of the package replaced by relative ones."""
    lines = text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found = list(_imports(node, source))
            if found:
                indent = " " * node.col_offset
                lines[node.lineno - 1 : node.end_lineno] = [
                    "".join(f"{indent}{line}\n" for line in found),
                    *[""] * ((node.end_lineno or node.lineno) - node.lineno),
                ]
    return "".join(lines)


def _imports(node: ast.Import | ast.ImportFrom, source: str) -> Iterator[str]:
    """Yield the replacement of an import; nothing if it can stay."""
    if isinstance(node, ast.ImportFrom):
        module = "." * node.level + (node.module or "")
        names = {alias.name: f"{alias.name} as {alias.asname}" if alias.asname else alias.name for alias in node.names}
        if module in _HOMES:
            yield f"from .{_HOMES[module]} import {', '.join(names.values())}"
            return
        if module in _REEXPORTING and names.keys() <= _REEXPORTED.keys() and names.keys() == set(names.values()):
            yield from (_REEXPORTED[name] for name in names)
            return
        modules = [module]
    else:
        modules = [alias.name for alias in node.names]
    for module in modules:
        if module.partition(".")[0] not in {*sys.stdlib_module_names, "torch", "transformers"}:
            carried = ", ".join(name for name in _HOMES if ".model." in name)
            raise UserError(
                f"{source} imports {module}, which is not available in an exported folder; "
                f"keep the architecture in a file that imports only torch, {PACKAGE} (GPT, GPTConfig) and {carried}"
            )
