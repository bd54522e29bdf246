"""nanochat's tokenizer files: tokenizer.pkl, a pickled tiktoken encoding, and token_bytes.pt.

A pickle is a program. This one is run by an unpickler that knows a single name, the class of the encoding, and puts a
class without behaviour in its place: nothing of tiktoken or of anything else is called while a file is read.
"""

import io
import pickle
from pathlib import Path
from typing import Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.tokenizer.tiktoken_bpe import TiktokenTokenizer

PICKLE_FILE = "tokenizer.pkl"
TOKEN_BYTES_FILE = "token_bytes.pt"  # noqa: S105 (no password)
MAX_PICKLE_BYTES = 256 * 2**20
"""A vocabulary of a million tokens takes a tenth of it."""

_FIELDS = {"name", "pat_str", "mergeable_ranks", "special_tokens"}


def load_nanochat_tokenizer(folder: str | Path) -> tuple[TiktokenTokenizer, list[str]]:
    """Read tokenizer.pkl, and compare it with token_bytes.pt if that lies beside it.

    Args:
        folder: Holds tokenizer.pkl.

    Returns:
        The tokenizer, and lines on what is worth knowing.

    Raises:
        UserError: If a file is missing or holds anything but what nanochat writes.
    """
    path = Path(folder) / PICKLE_FILE
    if not path.is_file():
        raise UserError(f"no {PICKLE_FILE} in '{folder}'; give nanochat's tokenizer folder with --tokenizer")
    if path.stat().st_size > MAX_PICKLE_BYTES:
        raise UserError(f"{path} has more than {MAX_PICKLE_BYTES:,} bytes; it is not a tokenizer of nanochat")
    state = read_encoding(path.read_bytes(), str(path))
    tokenizer = TiktokenTokenizer(state["pat_str"], state["mergeable_ranks"], state["special_tokens"])
    table = Path(folder) / TOKEN_BYTES_FILE
    if not table.is_file():
        return tokenizer, [f"{TOKEN_BYTES_FILE} is not there; the lengths in bytes come from the tokens themselves"]
    return tokenizer, _compare_lengths(tokenizer, table)


def read_encoding(data: bytes, source: str) -> dict[str, Any]:
    """The fields of a pickled tiktoken encoding: name, pat_str, mergeable_ranks and special_tokens.

    Args:
        data: The pickle.
        source: Where it comes from, for the message.

    Raises:
        UserError: If it holds, or would call, anything else.
    """
    try:
        encoding = _EncodingUnpickler(io.BytesIO(data)).load()
    except _ForbiddenError as error:
        raise UserError(f"{source} asks for {error}, which no tokenizer of nanochat does; it is not read") from None
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
            f"{source} only names the encoding {state!r} of OpenAI, which would have to be downloaded; "
            "give a tokenizer that nanochat has trained"
        )
    if not isinstance(state, dict) or set(state) != _FIELDS or not _has_types(state):
        raise UserError(f"{source} is not a pickled tiktoken encoding: its fields are not {', '.join(sorted(_FIELDS))}")
    return state


class _ForbiddenError(Exception):
    """The pickle names something other than the encoding's class."""


class _EncodingState:
    """Stands for tiktoken's class while its pickle is read: takes what is stored, does nothing."""

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
    """Check token_bytes.pt, in which older nanochats count a piece of a character as the three bytes of U+FFFD."""
    import torch

    from nanochat_lit.engine.nanochat_checkpoint import load_tensors

    theirs, ours = load_tensors(path), tokenizer.token_bytes()
    if not isinstance(theirs, torch.Tensor) or theirs.shape != ours.shape:
        raise UserError(f"{path} is not the table of this tokenizer, which has {tokenizer.vocab_size} tokens")
    different = (theirs.to(torch.int64) != ours).nonzero().flatten().tolist()
    for token_id in different:
        piece = tokenizer.bytes_of(token_id)
        if int(theirs[token_id]) != len(piece.decode("utf-8", "replace").encode()):
            raise UserError(
                f"{path} gives token {token_id} {int(theirs[token_id])} bytes, but it has {len(piece)}: "
                "it is the table of another tokenizer"
            )
    if not different:
        return []
    note = (
        f"{TOKEN_BYTES_FILE}: {len(different)} tokens are pieces of characters, which nanochat counts as U+FFFD; "
        "here they count as the bytes they are, so bits per byte can differ in the last digits"
    )
    return [note]
