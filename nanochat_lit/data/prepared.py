"""A folder of prepared shards: text tokenized ahead of training.

    shard_00000.tokens, ...   token ids, one file per text file (see prepared_file.py)
    tokenizer/                the tokenizer of the shards
    prepared.json             written last: the shards in order, validation shards last

Shards are written one by one, so an interrupted preparation resumes at the first missing shard.
"""

import errno
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nanochat_lit.common.downloads import file_sha256, locked
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import read_json, write_json
from nanochat_lit.data.encoding import ENCODE_BATCH_SIZE, batched, encoded_documents, token_dtype
from nanochat_lit.data.prepared_file import SUFFIX, Header, read_header, write_shard
from nanochat_lit.data.splits import FileSplit

if TYPE_CHECKING:
    from nanochat_lit.data.shards import FileSource
    from nanochat_lit.tokenizer import Tokenizer

LIST_FILE = "prepared.json"
TOKENIZER_FOLDER = "tokenizer"
FORMAT = "nanochat-lit prepared text"


def is_prepared(path: object) -> bool:
    """Return whether a path is a folder of prepared shards, finished or not."""
    if not isinstance(path, (str, Path)):
        return False
    folder = Path(path)
    return folder.is_dir() and ((folder / LIST_FILE).exists() or any(folder.glob(f"*{SUFFIX}")))


def prepared_split(folder: Path) -> FileSplit:
    """Return the training and validation shards.

    Raises:
        UserError: If the preparation was not finished, or a shard is missing.
    """
    if not (folder / LIST_FILE).exists():
        raise UserError(f"the preparation of '{folder}' was not finished; run the same `data prepare` again")
    content = read_json(folder / LIST_FILE)
    names = content.get("shards") if isinstance(content, dict) and content.get("format") == FORMAT else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"'{folder / LIST_FILE}' is not a list of prepared shards; run `data prepare` again")
    paths = [folder / Path(name).name for name in names]
    for path in paths:
        if not path.is_file():
            raise UserError(f"'{path}' is missing; run the same `data prepare` again")
    num_train = content.get("num_train", max(1, len(paths) - 1))  # missing in folders of earlier versions
    return FileSplit(train=paths[:num_train], val=paths[num_train:])


def check_tokenizer(folder: Path, tokenizer: "Tokenizer") -> None:
    """Raise UserError unless the shards of a folder were prepared with this tokenizer."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        found = read_header(path).tokenizer.hex()
        if found != tokenizer.fingerprint:
            raise UserError(
                f"'{path}' was prepared with another tokenizer ({found[:12]}...) than the one in use "
                f"({tokenizer.fingerprint[:12]}...); use '{folder / TOKENIZER_FOLDER}', "
                "or prepare the text with this one into another folder"
            )


def prepare(
    source: "FileSource",
    tokenizer: "Tokenizer",
    folder: Path,
    num_threads: int = 1,
    report: Callable[[Path, Header, bool], Any] = lambda _path, _header, _is_new: None,
) -> list[Header]:
    """Write the missing shards, then the list of all shards.

    Args:
        source: Text files.
        tokenizer: Tokenizer to use.
        folder: Output folder; created if needed.
        num_threads: Native tokenizer threads.
        report: Called after each shard with its path, its header and whether it is new.

    Raises:
        UserError: For bad text, a folder that was prepared with another tokenizer, or a full disk; finished shards are
            kept.
    """
    try:
        with locked(folder / ".lock"):
            return _prepare(source, tokenizer, folder, num_threads, report)
    except OSError as error:
        reason = error.strerror or str(error)
        hint = ""
        if error.errno == errno.ENOSPC:
            hint = f"; {shutil.disk_usage(folder).free:,} bytes are free there: free disk space and run it again, finished shards are kept"
        raise UserError(f"cannot write into '{folder}' ({reason}){hint}") from None


def _prepare(
    source: "FileSource",
    tokenizer: "Tokenizer",
    folder: Path,
    num_threads: int,
    report: Callable[[Path, Header, bool], Any],
) -> list[Header]:
    paths = _shard_paths(source, folder)
    for path in paths:
        if path.is_file() and _header(path) is None:
            path.unlink()  # damaged: written again
    check_tokenizer(folder, tokenizer)
    for rest in folder.glob(f".*{SUFFIX}.*.tmp"):  # left by a killed preparation; this process has the lock
        rest.unlink()
    (folder / LIST_FILE).unlink(missing_ok=True)
    tokenizer.save(folder / TOKENIZER_FOLDER)
    headers = []
    for index, path in enumerate(paths):
        digest = file_sha256(source.files[index].path)
        header = _header(path)
        is_new = header is None or header.source.hex() != digest
        if is_new:
            documents = _documents(source, index, tokenizer, num_threads)
            fingerprints = (tokenizer.fingerprint, digest)
            dtype = token_dtype(tokenizer.vocab_size)
            header = write_shard(path, documents, source.files[index].blocks(), dtype, fingerprints)
        assert header is not None, "the shard exists or was written"
        headers.append(header)
        report(path, header, is_new)
    content = {
        "format": FORMAT,
        "tokenizer": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "documents": sum(header.num_rows for header in headers),
        "tokens": sum(header.num_tokens for header in headers),
        "shards": [path.name for path in paths],
        "num_train": len(source.split.train),
    }
    write_json(folder / LIST_FILE, content)
    return headers


def _shard_paths(source: "FileSource", folder: Path) -> list[Path]:
    names = [file.path.name.split(".")[0] for file in source.files]
    if len(set(names)) < len(names):  # for example a.b.txt and a.c.txt, or equal names in two folders
        names = [source.file_name(file.path).replace("/", "__") for file in source.files]
    return [folder / f"{name}{SUFFIX}" for name in names]


def _header(path: Path) -> Header | None:
    """Return the header of an existing, complete shard, else None."""
    try:
        return read_header(path) if path.is_file() else None
    except UserError:
        return None


def _documents(
    source: "FileSource", index: int, tokenizer: "Tokenizer", num_threads: int
) -> Iterator[np.ndarray | None]:
    """Yield every record of a file as tokens; None for a record without text."""
    rows = (item for start, stop in source.files[index].blocks() for item in source.read(index, range(start, stop)))
    for batch in batched(rows, ENCODE_BATCH_SIZE):
        documents = iter(encoded_documents(tokenizer, [text for text in batch if text is not None], num_threads))
        for text in batch:
            yield None if text is None else next(documents)
