"""Reader of nanochat's tokenizer files: tokenizer.pkl (a pickled tiktoken encoding), token_bytes.pt, and published tokenizer.json.

A pickle can execute code. The unpickler used here allows a single name, the encoding's class, and replaces it by an
inert class, so that no code of tiktoken or other libraries is called.
"""

import io
import pickle
from pathlib import Path
from typing import Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import read_json
from nanochat_lit.engine.hf_tokenizer import printable_bytes
from nanochat_lit.tokenizer.tiktoken_bpe import TiktokenTokenizer

PICKLE_FILE = "tokenizer.pkl"
TOKEN_BYTES_FILE = "token_bytes.pt"  # noqa: S105 (no password)
MAX_PICKLE_BYTES = 256 * 2**20
"""Maximum size of the pickle; a vocabulary of a million tokens takes a tenth of it."""

_FIELDS = {"name", "pat_str", "mergeable_ranks", "special_tokens"}


def load_nanochat_tokenizer(folder: str | Path) -> tuple[TiktokenTokenizer, list[str]]:
    """Read tokenizer.pkl, and compare it with token_bytes.pt if present.

    Args:
        folder: Folder with tokenizer.pkl.

    Returns:
        The tokenizer, and lines with notes.

    Raises:
        UserError: If a file is missing or has unexpected contents.
    """
    path = Path(folder) / PICKLE_FILE
    if not path.is_file():
        raise UserError(f"no {PICKLE_FILE} in '{folder}'; give nanochat's tokenizer folder with --tokenizer")
    if path.stat().st_size > MAX_PICKLE_BYTES:
        raise UserError(f"{path} has more than {MAX_PICKLE_BYTES:,} bytes; it is not a nanochat tokenizer")
    state = read_encoding(path.read_bytes(), str(path))
    tokenizer = TiktokenTokenizer(state["pat_str"], state["mergeable_ranks"], state["special_tokens"])
    table = Path(folder) / TOKEN_BYTES_FILE
    if not table.is_file():
        return tokenizer, [f"{TOKEN_BYTES_FILE} is missing; the lengths in bytes are computed from the tokens"]
    return tokenizer, _compare_lengths(tokenizer, table)


def read_encoding(data: bytes, source: str) -> dict[str, Any]:
    """Return the fields of a pickled tiktoken encoding: name, pat_str, mergeable_ranks and special_tokens.

    Raises:
        UserError: If it contains or would call anything else.
    """
    try:
        encoding = _EncodingUnpickler(io.BytesIO(data)).load()
    except _ForbiddenError as error:
        raise UserError(f"{source} refers to {error}, unlike nanochat tokenizers; it was not loaded") from None
    except (
        pickle.UnpicklingError,
        EOFError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        MemoryError,
        OverflowError,
    ) as error:
        raise UserError(f"{source} is not a pickled tiktoken encoding ({type(error).__name__}: {error})") from None
    state = encoding.state if type(encoding) is _EncodingState else None
    if isinstance(state, str):
        raise UserError(
            f"{source} only refers to OpenAI's encoding {state!r}, which would have to be downloaded; "
            "give a tokenizer trained by nanochat"
        )
    if not isinstance(state, dict) or set(state) != _FIELDS or not _has_types(state):
        raise UserError(f"{source} is not a pickled tiktoken encoding: its fields are not {', '.join(sorted(_FIELDS))}")
    return state


def tokenizer_of_hf(path: Path) -> TiktokenTokenizer:
    """Read the tokenizer.json of a published nanochat model: byte-level BPE behind a pattern of words.

    Raises:
        UserError: If it holds another kind of tokenizer.
    """
    values = read_json(path)
    try:
        added = {token["content"]: token["id"] for token in values["added_tokens"]}
        (pattern,) = [
            step["pattern"]["Regex"] for step in values["pre_tokenizer"]["pretokenizers"] if "pattern" in step
        ]
        bytes_of = {letter: value for value, letter in enumerate(printable_bytes())}
        pieces = {name: index for name, index in values["model"]["vocab"].items() if name not in added}
        ranks = {bytes(bytes_of[letter] for letter in name): index for name, index in pieces.items()}
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{path} is not a tokenizer of nanochat; give the export that the model came from with --tokenizer"
        ) from None
    return TiktokenTokenizer(pattern, ranks, added)


class _ForbiddenError(Exception):
    """The pickle names something other than the encoding's class."""


class _EncodingState:
    """Inert replacement of tiktoken's class that only stores its state."""

    state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class _EncodingUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) == ("tiktoken.core", "Encoding"):
            return _EncodingState
        raise _ForbiddenError(f"{module_name}.{global_name}")

    def persistent_load(self, pid: object) -> Any:
        raise _ForbiddenError(f"the persistent object {pid!r}")


def _has_types(state: dict[str, Any]) -> bool:
    ranks, special = state["mergeable_ranks"], state["special_tokens"]
    return (
        type(state["pat_str"]) is str
        and type(ranks) is dict
        and type(special) is dict
        and all(type(token) is bytes and type(rank) is int for token, rank in ranks.items())
        and all(type(name) is str and type(index) is int for name, index in special.items())
    )


def _compare_lengths(tokenizer: TiktokenTokenizer, path: Path) -> list[str]:
    """Check token_bytes.pt, in which older nanochats count a part of a character as the three bytes of U+FFFD."""
    import torch

    from nanochat_lit.engine.nanochat_checkpoint import load_tensors

    theirs, ours = load_tensors(path), tokenizer.token_bytes()
    if not isinstance(theirs, torch.Tensor) or theirs.shape != ours.shape:
        raise UserError(f"{path} does not belong to this tokenizer, which has {tokenizer.vocab_size} tokens")
    different = (theirs.to(torch.int64) != ours).nonzero().flatten().tolist()
    for token_id in different:
        piece = tokenizer.bytes_of(token_id)
        if int(theirs[token_id]) != len(piece.decode("utf-8", "replace").encode()):
            raise UserError(
                f"{path} gives token {token_id} {int(theirs[token_id])} bytes, but it has {len(piece)}: "
                "it belongs to another tokenizer"
            )
    if not different:
        return []
    note = (
        f"{TOKEN_BYTES_FILE}: {len(different)} tokens are parts of characters, which nanochat counts as U+FFFD; "
        "here their actual bytes count, so bits per byte can differ in the last digits"
    )
    return [note]
