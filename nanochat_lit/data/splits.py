"""Assignment of files to splits by the conventions of the Hugging Face hub.

A word between separators in a file's name (`train-00000-of-00002.parquet`, `name_test.jsonl`), or a folder of that
name, determines the split. Files of a test split are never used for training, and for validation only if named
explicitly. Without a validation file by name, the last file is used; of a single training file, the last 1%.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Literal

from nanochat_lit.common.errors import UserError
from nanochat_lit.data.text_files import FAMILIES_IN_WORDS, family_of

NamedSplit = Literal["train", "val", "test"]
WORDS: dict[NamedSplit, tuple[str, ...]] = {
    # in this order, so that a name with several words is not used for training
    "test": ("test", "testing", "eval", "evaluation"),
    "val": ("validation", "valid", "val", "dev", "h[eo]ld[-_ ]?out"),
    "train": ("train", "training"),
}
_DOCUMENTATION = re.compile(r"(?i)(readme|license|licence|changelog|citation|notice|.*\.(md|markdown)$)")


@dataclass(kw_only=True)
class FileSplit:
    """The files of a data set."""

    train: list[Path] = field(default_factory=list)  # training files by name
    val: list[Path] = field(default_factory=list)
    """Validation files; empty if the last 1% of the last training file is used."""
    test: list[Path] = field(default_factory=list)  # files of a test split
    left_out: list[str] = field(default_factory=list)
    """Ignored entries of the folder, with the reason if it is not the file type."""
    is_by_order: bool = False  # whether the validation file was selected as the last by name

    @property
    def files(self) -> list[Path]:
        """Files to read: training, then validation; those of a test split if there are no others."""
        return [*self.train, *self.val] or self.test


def split_of(name: str) -> NamedSplit | None:
    """Return the split in the name of a file, or else of its folders; None if there is none."""
    *folders, file = PurePath(name).parts
    for split, words in WORDS.items():
        if re.search(rf"(?i)(^|[-._ 0-9])({'|'.join(words)})(set|data|split)?($|[-._ 0-9])", file):
            return split
    for folder in reversed(folders):
        for split, words in WORDS.items():
            if re.fullmatch(rf"(?i)({'|'.join(words)})[-_ ]?(set|data|split)?", folder):
                return split
    return None


def find_split(path: Path, validation: str | None = None) -> FileSplit:
    """Find the files of one type below a path; `validation` names the validation file, None decides by the names."""
    if path.is_file():
        if family_of(path) is None:
            raise UserError(f"'{path}' is not a {FAMILIES_IN_WORDS} file; convert it or give another")
        if validation is not None:
            raise UserError(
                f"'{path}' is a single file, so '{validation}' cannot be the validation file; give the folder of both"
            )
        return FileSplit(train=[path])
    if not path.is_dir():
        raise UserError(f"no file or folder '{path}'; give a {FAMILIES_IN_WORDS} file or a folder of such files")
    named, left_out = _named_files(path)
    _leave_out_documentation(path, named, left_out)
    if validation is not None:
        found = _with_validation(path, named, validation)
    else:
        found = FileSplit(train=named["train"] or named[None], val=named["val"], test=named["test"])
        if not named["train"] and not found.val and len(found.train) > 1:
            found.val, found.is_by_order = [found.train.pop()], True
    used = {*found.train, *found.val, *found.test}
    for split, files in named.items():
        reason = "no split in its name" if split is None else f"{split} split"
        left_out += [f"{file.relative_to(path)} ({reason})" for file in files if file not in used]
    left_out += [f"{file.relative_to(path)} (test split)" for file in found.test if file not in found.files]
    found.left_out = sorted(left_out)
    return found


def _named_files(path: Path) -> tuple[dict[NamedSplit | None, list[Path]], list[str]]:
    """Return the supported files by the split in their names, and the names of all other visible entries."""
    named: dict[NamedSplit | None, list[Path]] = {"train": [], "val": [], "test": [], None: []}
    left_out: list[str] = []
    for child in sorted(path.iterdir()):
        if child.name.startswith("."):  # includes partial files of a download or an atomic write
            continue
        split = split_of(f"{child.name}/") if child.is_dir() else split_of(child.name)
        if child.is_dir() and split is None:
            left_out.append(f"{child.name}/")
            continue
        for file in sorted(child.iterdir()) if child.is_dir() else [child]:
            if file.is_file() and family_of(file) is not None:
                named[split].append(file)
            elif not file.name.startswith("."):
                slash = "/" if file.is_dir() else ""
                left_out.append(f"{file.relative_to(path)}{slash}")
    if not any(named.values()):
        folder = next((name for name in left_out if name.endswith("/")), None)
        hint = f"; subfolders such as '{folder[:-1]}' are not searched" if folder else ""
        raise UserError(f"the folder '{path}' contains no {FAMILIES_IN_WORDS} file{hint}")
    return named, left_out


def _leave_out_documentation(path: Path, named: dict[NamedSplit | None, list[Path]], left_out: list[str]) -> None:
    """Keep one file type: ignores a README next to records, and raises UserError for other mixtures."""
    kinds = {str(family_of(file)) for files in named.values() for file in files}
    if len(kinds) > 1 and ".txt" in kinds:
        for split, files in named.items():
            pages = [file for file in files if family_of(file) == ".txt" and _DOCUMENTATION.match(file.name)]
            left_out += [str(file.relative_to(path)) for file in pages]
            named[split] = [file for file in files if file not in pages]
        kinds = {str(family_of(file)) for files in named.values() for file in files}
    if len(kinds) > 1:
        raise UserError(f"the folder '{path}' contains {' and '.join(sorted(kinds))} files; use one type per folder")


def _with_validation(path: Path, named: dict[NamedSplit | None, list[Path]], validation: str) -> FileSplit:
    files = [file for split in ("train", None, "val", "test") for file in named[split]]
    chosen = [file for file in files if str(file.relative_to(path)) == validation]
    if not chosen or len(files) == 1:
        names = sorted(str(file.relative_to(path)) for file in files)
        shown = ", ".join(names if len(names) <= 6 else [*names[:3], "...", *names[-2:]])
        raise UserError(f"'{path}' has no validation file '{validation}' next to others (files: {shown})")
    train = [file for file in named["train"] or named[None] if file not in chosen]
    return FileSplit(train=train, val=chosen, test=[file for file in named["test"] if file not in chosen])
