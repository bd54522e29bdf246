"""Checkpoints of a run: written whole or not at all, the newest intact one found again."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import IO, Any, cast

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from nanochat_lit.common.available_memory import available_memory_bytes
from nanochat_lit.common.distributed import is_rank_zero
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import atomic_write
from nanochat_lit.engine.checkpoint import BEST, LAST, damage, step_files

HOST_MEMORY_SHARE = 0.5
"""Of the host's free memory, what a copy of a checkpoint may take."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name, syncs it to disk, renames it; a failure leaves no trace but `error`.

    On a GPU training does not wait for the disk: the checkpoint is copied to the host's memory and a thread writes the copy.
    One checkpoint is in flight at most. `then` adds what has to follow a write, `wait` waits for all of it.

    An exception in `save_checkpoint` would be raised on rank 0 alone, while the others wait for it: the caller looks at
    `error` after `wait` instead.

    Args:
        in_background: Whether a thread writes; None (default) means on a GPU, if the host has memory for the copy.
    """

    def __init__(self, in_background: bool | None = None) -> None:
        self.error: OSError | None = None
        self._in_background = in_background
        self._writer: ThreadPoolExecutor | None = None
        self._tasks: list[Future[None]] = []

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write it, or copy it for the thread that does; storage_options is Lightning's and unused."""
        self.wait()
        self.error = None
        if not (_is_worth_a_copy(checkpoint) if self._in_background is None else self._in_background):
            self._write(checkpoint, path)
            return
        copy = _on_host(checkpoint)
        if torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()
        self._writer = self._writer or ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._tasks.append(self._writer.submit(self._write, copy, path))

    def then(self, action: Callable[[], None]) -> None:
        """Call `action` once what was saved last is on disk; never if it could not be written."""
        if self._writer is not None and self.is_writing():
            self._tasks.append(self._writer.submit(self._unless_failed, action))
        else:
            self._unless_failed(action)

    def is_writing(self) -> bool:
        """Whether the thread has something left to do."""
        return any(not task.done() for task in self._tasks)

    def wait(self) -> None:
        """Return when everything is done; raises what the thread has raised, except for `error`."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.result()

    def teardown(self) -> None:
        """Lightning's hook for the end of a run, which also comes after an exception."""
        self.wait()

    def _write(self, checkpoint: dict[str, Any], path: str | os.PathLike[str]) -> None:
        try:
            with atomic_write(path, "wb") as file:
                _save(checkpoint, file)
            _sync_folder(Path(path).parent)
        except OSError as error:
            self.error = error

    def _unless_failed(self, action: Callable[[], None]) -> None:
        if self.error is None:
            action()


def _is_worth_a_copy(checkpoint: dict[str, Any]) -> bool:
    """Whether the weights are on a GPU, and the host can hold everything once more."""
    if not any(tensor.is_cuda for tensor in _tensors(checkpoint.get("state_dict"))):
        return False
    # torch rounds each piece of page-locked memory up to a power of two, and keeps it for the next checkpoint
    needed = sum(1 << (tensor.nbytes - 1).bit_length() for tensor in _tensors(checkpoint) if tensor.nbytes)
    return needed < HOST_MEMORY_SHARE * available_memory_bytes()


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _on_host(value: Any) -> Any:
    """A copy that training does not change; those of CUDA tensors are under way until their stream is synchronized."""
    if isinstance(value, torch.Tensor):
        copy = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda, memory_format=torch.preserve_format)
        return copy.copy_(value, non_blocking=True)
    if isinstance(value, dict):
        return {key: _on_host(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_on_host(item) for item in value])
    return deepcopy(value)


def _save(checkpoint: dict[str, Any], file: Any) -> None:
    """torch.save, but a full disk is an OSError: torch's writer notices only that its positions do not fit any more."""
    guarded = _Guarded(file)
    try:
        torch.save(checkpoint, cast("IO[bytes]", guarded))
    except RuntimeError:
        if guarded.error is None:
            raise
    if guarded.error is not None:
        raise guarded.error


class _Guarded:
    """A file that after its first error swallows what is written, and remembers the error."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write, or pretend to."""
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """Pass what is buffered on."""
        if self.error is None:
            try:
                self.file.flush()
            except OSError as error:
                self.error = error


def _sync_folder(folder: Path) -> None:
    """Make the renames in a folder last through a power cut, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def give_name(path: Path, name: str) -> None:
    """Let the file also be known by another name in its folder, which changes hands in one instant."""
    other = path.with_name(name)
    temporary = path.with_name(f".{name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without hard links
        temporary.unlink(missing_ok=True)
        with atomic_write(other, "wb") as file, path.open("rb") as source:
            while block := source.read(1 << 24):
                file.write(block)
        return
    temporary.replace(other)


def check_no_earlier_run(folder: Path) -> None:
    """Raise UserError if the folder has checkpoints, which a run that starts anew would replace."""
    if files := step_files(folder):
        raise UserError(
            f"{folder} has a run that reached step {next(iter(files))}; continue it with --ckpt_path last, "
            "replace it with --overwrite true, or give another run_dir"
        )


def resolve(ckpt_path: str, run_dir: Path) -> Path | None:
    """The file that `--ckpt_path` means: a path, or the words last and best.

    Args:
        ckpt_path: What was asked for.
        run_dir: Whose checkpoints the words mean.

    Returns:
        An intact file; None for `last` in a run that has none yet, so that the same command starts and continues.

    Raises:
        UserError: If the file does not exist, or no checkpoint is intact.
    """
    folder = run_dir / "checkpoints"
    if ckpt_path == "last":
        return newest_intact(folder)
    path = folder / BEST if ckpt_path == "best" else Path(ckpt_path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; give a .ckpt file, or the word last or best")
    with path.open("rb") as file:
        if file.read(2) not in (b"PK", b""):  # how every zip archive begins, also half of one
            raise UserError(f"{path} is not a checkpoint; give a .ckpt file, or the word last or best")
    if problem := damage(path):
        raise UserError(f"checkpoint {path} is damaged: {problem}; try --ckpt_path last, which looks for an intact one")
    return path


def newest_intact(folder: Path) -> Path | None:
    """The newest checkpoint of a folder that is as it was written; None if the folder has none.

    Raises:
        UserError: If none of several is intact.
    """
    candidates = list(step_files(folder).values())
    candidates += [path for path in (folder / LAST, folder / BEST) if path.is_file()]
    for path in candidates:
        problem = damage(path)
        if problem is None:
            _say(f"continuing from {path}")
            return path
        _say(f"checkpoint {path} is damaged: {problem}; trying the one before")
    if candidates:
        raise UserError(f"no checkpoint in {folder} is intact; start anew without --ckpt_path, in another run_dir")
    _say(f"no checkpoint in {folder} yet: starting from step 0")
    return None


def _say(text: str) -> None:
    if is_rank_zero():
        print(text, file=sys.stderr)
