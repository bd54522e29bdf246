"""Checkpoint files of a run: atomic writes, and a search for the newest intact file."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import IO, Any, cast

import torch
import yaml
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer

from nanochat_lit.common.distributed import say
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.hardware import available_memory_bytes
from nanochat_lit.common.paths import atomic_write
from nanochat_lit.engine.checkpoint import BEST, LAST, damage, step_files
from nanochat_lit.model.config import REFERENCE_ARCHITECTURE

HOST_MEMORY_SHARE = 0.5
"""Maximum size of a checkpoint copy, as a fraction of the host's free memory."""


KEY = "config"

FIXED = {
    "model.class_path": "the stage",
    **dict.fromkeys(
        (
            *("model.depth", "model.head_dim", "model.aspect_ratio", "model.n_embd", "model.n_head", "model.n_kv_head"),
            *("model.window_pattern", "model.bigram_factor", "model.architecture", "model.tie_embeddings"),
        ),
        "the model",
    ),
    "model.sequence_len": "the model and the packed sequences",
    "data.class_path": "the data",
    "data.vocab_size": "the tokenizer",
}
"""Keys that cannot change within a run, and what they determine."""

LATER = {"model.bigram_factor": 0, "model.architecture": REFERENCE_ARCHITECTURE, "model.tie_embeddings": False}
"""Keys that older checkpoints lack, and the values they were trained with."""

FORMER_DEFAULTS = {"model.window_pattern": "SSSL"}
"""Keys whose default is now null, and what older checkpoints state in its place."""

FREE = (
    *("ckpt_path", "run_dir", "overwrite", "weights_only", "log_every", "checkpoint_every", "checkpoint_minutes"),
    *("checkpoint_in_background", "keep_last", "keep_best", "stop_on_explosion", "config", "trainer.callbacks"),
    "trainer.logger",
)
"""Keys that do not affect training."""


def compare_configs(saved: str, current: str) -> None:
    """Print what has changed since the checkpoint, of resolved configurations as YAML; UserError for a key of `FIXED`."""
    before, now = flatten(yaml.safe_load(saved)), flatten(yaml.safe_load(current))
    before = {key: value for key, value in LATER.items() if key in now} | before
    for key, value in FORMER_DEFAULTS.items():
        if before.get(key) == value and key in now and now[key] is None:
            before[key] = None
    changed = sorted(
        key
        for key in before.keys() | now.keys()
        if before.get(key) != now.get(key) and not key.startswith(FREE) and not key.endswith("__path__")
    )
    for key in changed:
        values = f"{key} is {now.get(key)}, but the checkpoint has {before.get(key)}"
        if key in FIXED:
            raise UserError(f"{values}; {FIXED[key]} cannot change within a run. Restore the value, or start a new run")
        say(f"changed since the checkpoint: {key} {before.get(key)} -> {now.get(key)}")


def flatten(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return the leaves of a nested mapping by dotted names, without `init_args`, as on the command line."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        place = path if name == "init_args" else f"{path}.{name}" if path else str(name)
        if isinstance(value, Mapping) and value:
            leaves |= flatten(value, place)
        else:
            leaves[place] = value
    return leaves


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file, syncs and renames it; a failure is stored in `error`.

    On a GPU, if the host has memory for the copy (`in_background` None), the checkpoint is copied to host memory and
    written by a background thread while training continues. At most one checkpoint is in flight. `then` schedules an
    action after a write; `wait` waits for everything.

    An exception in `save_checkpoint` would be raised only on rank 0 and deadlock the others. Check `error` after `wait`
    instead.
    """

    def __init__(self, in_background: bool | None = None) -> None:
        self.error: OSError | None = None
        self._in_background = in_background
        self._writer: ThreadPoolExecutor | None = None
        self._tasks: list[Future[None]] = []

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write the checkpoint, or copy it for the background thread; `storage_options` is unused."""
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
        """Call `action` once the last checkpoint is on disk; skipped if writing failed."""
        if self._writer is not None and self.is_writing():
            self._tasks.append(self._writer.submit(self._unless_failed, action))
        else:
            self._unless_failed(action)

    def is_writing(self) -> bool:
        """Return whether the background thread has pending work."""
        return any(not task.done() for task in self._tasks)

    def wait(self) -> None:
        """Wait for pending work; re-raises exceptions of the thread other than `error`."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.result()

    def teardown(self) -> None:
        """Stop the thread at the end of a run; Lightning also calls this after an exception."""
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


def writer_of(trainer: Trainer) -> AtomicCheckpointIO:
    """Return the writer of a run's checkpoints."""
    return cast(AtomicCheckpointIO, trainer.strategy.checkpoint_io)


def _is_worth_a_copy(checkpoint: dict[str, Any]) -> bool:
    """Return whether the weights are on a GPU and the host has memory for a copy."""
    if not any(tensor.is_cuda for tensor in _tensors(checkpoint.get("state_dict"))):
        return False
    # torch rounds each page-locked allocation up to a power of two and caches it for the next checkpoint
    needed = sum(1 << (tensor.nbytes - 1).bit_length() for tensor in _tensors(checkpoint) if tensor.nbytes)
    return needed < HOST_MEMORY_SHARE * available_memory_bytes()


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _on_host(value: Any) -> Any:
    """Return a copy in host memory; copies of CUDA tensors are asynchronous until the stream is synchronized."""
    if isinstance(value, torch.Tensor):
        copy = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda, memory_format=torch.preserve_format)
        return copy.copy_(value, non_blocking=True)
    if isinstance(value, dict):
        return {key: _on_host(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_on_host(item) for item in value])
    return deepcopy(value)


def _save(checkpoint: dict[str, Any], file: Any) -> None:
    """Call torch.save, but raise OSError on a full disk; torch's writer reports only a position mismatch."""
    guarded = _Guarded(file)
    try:
        torch.save(checkpoint, cast("IO[bytes]", guarded))
    except RuntimeError:
        if guarded.error is None:
            raise
    if guarded.error is not None:
        raise guarded.error


class _Guarded:
    """A file wrapper that discards writes after the first error and stores that error."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        if self.error is None:
            try:
                self.file.flush()
            except OSError as error:
                self.error = error


def _sync_folder(folder: Path) -> None:
    """Sync a folder so that renames survive a power failure, if the system supports it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def give_name(path: Path, name: str) -> None:
    """Atomically point another name in the same folder to the file."""
    other = path.with_name(name)
    temporary = path.with_name(f".{name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without hard links
        temporary.unlink(missing_ok=True)
        with atomic_write(other, "wb") as file, path.open("rb") as source:
            shutil.copyfileobj(source, file, 1 << 24)
        return
    temporary.replace(other)


def check_no_earlier_run(folder: Path) -> None:
    """Raise UserError if the folder has checkpoints, which a new run would replace."""
    if files := step_files(folder):
        raise UserError(
            f"{folder} has a run that reached step {next(iter(files))}; resume it with --ckpt_path last, "
            "replace it with --overwrite true, or give another run_dir"
        )


def resolve(ckpt_path: str, run_dir: Path) -> Path | None:
    """Return the intact file that `--ckpt_path` refers to: a path, or the words last or best in the run folder.

    None for `last` in a run without checkpoints, so that the same command starts and resumes a run.
    """
    folder = run_dir / "checkpoints"
    if ckpt_path == "last":
        return newest_intact(folder)
    path = folder / BEST if ckpt_path == "best" else Path(ckpt_path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; use a .ckpt file, last or best")
    with path.open("rb") as file:
        if file.read(2) not in (b"PK", b""):  # magic bytes of a zip archive, even if truncated
            raise UserError(f"{path} is not a checkpoint; use a .ckpt file, last or best")
    if problem := damage(path):
        raise UserError(f"checkpoint {path} is damaged: {problem}; use --ckpt_path last to find an intact one")
    return path


def newest_intact(folder: Path) -> Path | None:
    """Return the newest intact checkpoint of a folder, or None if it has none; UserError if all are damaged."""
    candidates = list(step_files(folder).values())
    candidates += [path for path in (folder / LAST, folder / BEST) if path.is_file()]
    for path in candidates:
        problem = damage(path)
        if problem is None:
            say(f"resuming from {path}")
            return path
        say(f"checkpoint {path} is damaged: {problem}; trying the previous one")
    if candidates:
        raise UserError(f"no checkpoint in {folder} is intact; start a new run without --ckpt_path in another run_dir")
    say(f"no checkpoint in {folder} yet: starting from step 0")
    return None
