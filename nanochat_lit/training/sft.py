"""Supervised fine-tuning of a pretrained export: its conversations (files, or mixtures of tasks), and the module."""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import ModuleList

from nanochat_lit.common.distributed import rank, world_size
from nanochat_lit.common.errors import UserError
from nanochat_lit.data.loader import ResumableLoader
from nanochat_lit.data.shards import FileSource
from nanochat_lit.data.source import SplitSource
from nanochat_lit.data.stream import ChatStream, SourceLike
from nanochat_lit.engine.checkpoint import load as load_checkpoint
from nanochat_lit.engine.export import read_config
from nanochat_lit.evaluation.bpb import BitsPerByte
from nanochat_lit.model import IGNORE_INDEX, GPTConfig
from nanochat_lit.optim import micro_batches
from nanochat_lit.tasks.base import Conversations, TaskMixture
from nanochat_lit.training.checkpoint_files import newest_intact
from nanochat_lit.training.continued import ContinuedModule
from nanochat_lit.training.datamodules import Batch, LanguageDataModule
from nanochat_lit.training.module import check_optimizer, describe_differences

COUNTED_CONVERSATIONS = 20_000
"""Conversations to count the tokens of an epoch from; for longer epochs, an evenly spaced sample is extrapolated."""


class ChatDataModule(LanguageDataModule):
    """Conversations for fine-tuning: a .jsonl file or a folder of them, with `messages` in each record.

    OpenAI's format (including tool calls) and ShareGPT's are converted on reading; see `tokenizer.foreign_chat`.

    Args:
        path: File or folder. File names such as train, val and test determine the split. Otherwise the last file by
            name, or the last 1% of a single file, is for validation.
        tokenizer: Folder of a tokenizer; None uses that of the base export.
        micro_batch_size: Sequences per device per forward pass: a number, or auto (the most that fit the device's
            memory).
        buffer_size: Conversations that best-fit packing chooses from.
        val_rows: Maximum number of packed validation sequences to evaluate on.
        num_workers: Loader processes; 0 reads in the training process.
        seed: Seed of the order of conversations.
        validation: Name of the validation file in the folder `path`; None decides by the file names.
    """

    def __init__(
        self,
        path: str,
        tokenizer: str | None = None,
        micro_batch_size: int | Literal["auto"] = 8,
        buffer_size: int = 1000,
        val_rows: int = 256,
        num_workers: int = 0,
        seed: int = 0,
        validation: str | None = None,
    ) -> None:
        super().__init__(tokenizer, micro_batch_size, num_workers, seed)
        self.path = path
        self.validation = validation
        self.buffer_size = buffer_size
        self.val_rows = val_rows

    def prepare_data(self) -> None:
        """Check every file and print which are used for training."""
        source = self.files()
        source.check()
        print(f"data: {source.summary()}", file=sys.stderr)

    def files(self) -> FileSource:
        """Files of the path."""
        return FileSource(self.path, "messages", self.seed, self.validation)

    names: list[str] | None = None
    """Names of the data sources that records may have in "source"."""

    def source(self) -> SourceLike:
        """Source of the conversations."""
        return self.files()

    def stream(self, split: str, items: SourceLike | None = None, rank: int = 0, world_size: int = 1) -> ChatStream:
        """Return packed conversations of a split; the train split is endless."""
        return ChatStream(
            conversations=self.source() if items is None else items,
            tokenizer=self.tokenizer,
            sequence_len=self.sequence_len,
            micro_batch_size=self.rows,
            split=split,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            buffer_size=self.buffer_size,
            names=self.names,
        )

    def epoch_tokens(self) -> int:
        """Return the number of tokens, including padding, of one pass over the training conversations."""
        once = self.stream("all", lambda: self.files().documents("train"))
        return sum(batch["inputs"].numel() for batch in once)

    def train_dataloader(self) -> ResumableLoader:
        return self.loader(self.stream("train", rank=rank(), world_size=world_size()))

    def val_batches(self) -> Iterator[Batch]:
        """Yield batches of packed validation conversations."""
        return islice(iter(self.stream("val")), max(1, self.val_rows // self.rows))


class MixtureDataModule(ChatDataModule):
    """Mixes several sources, with repeats; losses and token shares are reported per source.

    Args:
        train: Training tasks by name; their conversations are mixed evenly.
        val: Validation tasks by name; a task with the same name as one in `train` should be another split of it.
        repeats: Passes over each source of `train` per epoch, by name. Default 1.
        options: Options of `ChatDataModule`.
    """

    def __init__(
        self,
        train: dict[str, Conversations],
        val: dict[str, Conversations],
        repeats: dict[str, int] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(path="", seed=seed, validation=None, **options)
        self.train_mixture = TaskMixture(train, repeats, seed)
        self.val_mixture = TaskMixture(val, seed=seed)
        self.names = list(dict.fromkeys([*train, *val]))

    def prepare_data(self) -> None:
        """Do nothing; the tasks check their files when they are constructed."""

    def source(self) -> SplitSource:
        """Training and validation mixtures."""
        return SplitSource(self.train_mixture, self.val_mixture, self.seed)

    def epoch_tokens(self) -> int:
        """Return the number of tokens, including padding, of one pass; extrapolated from a sample of a long mixture."""
        stride = -(-len(self.train_mixture) // COUNTED_CONVERSATIONS)
        counted = range(0, len(self.train_mixture), stride)

        def conversations() -> Iterator[Mapping[str, Any]]:
            return (self.train_mixture[index] for index in counted)

        tokens = sum(batch["inputs"].numel() for batch in self.stream("all", conversations))
        return round(tokens * len(self.train_mixture) / len(counted))


class TokenAccounts:
    """Accumulates counts since the last `pop`; on the device, to avoid synchronization.

    Without names all sources are counted together. Token pad_id at the end of a sequence is padding.
    """

    def __init__(self, names: Sequence[str] | None, pad_id: int) -> None:
        self.names = list(names or ())
        self.pad_id = pad_id
        self._sums: list[Tensor] = []
        """Counts, (3 + sources,): positions, trained, padding, trained by source; and losses, (sources,), nats."""

    def add(self, batch: dict[str, Tensor], token_losses: Tensor) -> None:
        """Count a batch: inputs and targets, (B, T), sources if there are names; losses are 0 for ignored targets."""
        inputs, targets = batch["inputs"], batch["targets"]
        # A sequence ends with padding but never with BOS alone, so the trailing run of pad_id is padding.
        padding = (inputs.flip(1) == self.pad_id).to(torch.int64).cumprod(dim=1).sum()
        sizes = [torch.full_like(padding, inputs.numel()), (targets != IGNORE_INDEX).sum(), padding]
        is_own = [batch["sources"] == number for number, _ in enumerate(self.names, start=1)]
        counts = torch.stack([*sizes, *(own.sum() for own in is_own)])
        # torch.where instead of a product, so that a NaN loss affects only its source
        losses = torch.stack([token_losses.where(own, 0.0).sum() for own in is_own]) if is_own else counts.new_zeros(0)
        found = [counts, losses]
        self._sums = [old + new for old, new in zip(self._sums, found, strict=True)] if self._sums else found

    def pop(self) -> Tensor:
        """Return counts since the last call and sums of losses, (3 + 2 * sources,) float32; sum them over the ranks."""
        sums, self._sums = torch.cat([own.float() for own in self._sums]), []
        return sums

    def state_dict(self) -> dict[str, Any]:
        """Return the unread counts on the CPU."""
        return {name: own.cpu() for name, own in zip(("counts", "losses"), self._sums, strict=False)}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore the state that `state_dict` returned."""
        self._sums = [state[name].to(device) for name in ("counts", "losses")] if state else []

    def figures(self, sums: Sequence[float]) -> dict[str, float]:
        """Return the metrics from the results of `pop`, summed over all ranks: tokens as fractions of all positions.

        With names, also share/NAME (fraction of the trained tokens) and train_loss/NAME (nats per trained token) for
        sources with trained tokens. A sequence may contain conversations of several sources; tokens are attributed
        individually.
        """
        positions, trained, padding, *by_source = sums
        if not positions:
            return {}
        figures = {
            "tokens_trained": trained / positions,
            "tokens_read": (positions - trained - padding) / positions,
            "tokens_padding": padding / positions,
        }
        counts, losses = by_source[: len(self.names)], by_source[len(self.names) :]
        figures |= {f"share/{name}": count / max(trained, 1) for name, count in zip(self.names, counts, strict=True)}
        sources = zip(self.names, counts, losses, strict=True)
        return figures | {f"train_loss/{name}": loss / count for name, count, loss in sources if count}


class SFTModule(ContinuedModule):
    """Fine-tunes an export on conversations.

    Args:
        optimizer_from: Pretraining run (folder or .ckpt file) to load optimizer moments from; None starts with zero
            moments.
        tokens_per_step: Tokens per optimizer step over all ranks; None uses the base's value.
        momentum_warmup: Steps over which Muon momentum rises from 0.85 to 0.95.
        options: Options of `ContinuedModule`.
    """

    stage = "sft"

    def __init__(
        self,
        base: str,
        optimizer_from: str | None = None,
        tokens_per_step: int | None = None,
        warmdown: float = 0.5,
        momentum_warmup: int = 300,
        **options: Any,
    ) -> None:
        super().__init__(base=base, tokens_per_step=tokens_per_step, warmdown=warmdown, **options)
        if self.lora is not None and optimizer_from is not None:
            raise UserError("optimizer_from has moments of whole matrices, which model.lora does not train; remove one")
        self.optimizer_from = None if optimizer_from is None else _find_moments(Path(optimizer_from))
        self.schedule_options |= {"momentum_start": 0.85, "momentum_warmup": momentum_warmup}

    def check_batch(self, micro_batch_size: int, world_size: int, vocab_size: int | str = "auto") -> None:
        """Raise UserError for a batch that the ranks' micro-batches cannot fill, at the base's context length."""
        config = self.config_before_data()
        micro_batches(self.tokens_per_step, micro_batch_size, config.sequence_len, world_size)

    def config_before_data(self, vocab_size: int | str = "auto") -> GPTConfig:
        """Return the base's configuration."""
        return read_config(Path(self.base))

    def configure_model(self) -> None:
        """Load the base model once the data are ready."""
        if hasattr(self, "model"):
            return
        datamodule = self.datamodule
        if not isinstance(datamodule, ChatDataModule):
            raise UserError("SFTModule needs conversations; use a ChatDataModule or a MixtureDataModule")
        self.load_base()
        self.accounts = TokenAccounts(datamodule.names, datamodule.tokenizer.bos_id)
        self.source_metrics = ModuleList([BitsPerByte() for _ in datamodule.names or ()])
        self.start_stage(lambda: datamodule.epoch_tokens() // self.tokens_per_step, self.tokens_per_step)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss, token_losses = self.model.loss_and_token_losses(batch["inputs"], batch["targets"])
        self.accounts.add(batch, token_losses)
        self.losses.add(loss)
        return loss

    def pop_step_figures(self) -> dict[str, float]:
        sums = cast(Tensor, self.trainer.strategy.reduce(self.accounts.pop(), reduce_op="sum"))
        return self.accounts.figures(sums.tolist())

    def rank_state_dict(self) -> dict[str, Any]:
        return {**super().rank_state_dict(), "token_accounts": self.accounts.state_dict()}

    def load_rank_state_dict(self, state: dict[str, Any]) -> None:
        super().load_rank_state_dict(state)
        self.accounts.load_state_dict(state.get("token_accounts", {}), self.device)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        losses = self.model(batch["inputs"], batch["targets"], reduction="none")
        self.metric.update(losses, batch["targets"], self.token_bytes)
        for number, metric in enumerate(self.source_metrics, start=1):
            own = batch["targets"].masked_fill(batch["sources"] != number, IGNORE_INDEX)
            cast(BitsPerByte, metric).update(losses, own, self.token_bytes)

    def pop_validation_figures(self) -> dict[str, float]:
        figures = super().pop_validation_figures()
        if not self.has_validation:
            return figures
        for name, metric in zip(self.accounts.names, self.source_metrics, strict=True):
            value = float(cast(BitsPerByte, metric).compute())
            cast(BitsPerByte, metric).reset()
            if not math.isnan(value):  # NaN without held-out conversations
                figures[f"val_bpb/{name}"] = value
        return figures

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = super().configure_optimizers()
        if self.optimizer_from is not None:
            checkpoint = load_checkpoint(self.optimizer_from, mmap=True)  # each rank reads only its own shard
            if differences := describe_differences(checkpoint["nanochat_lit"]["config"], self.config.to_dict()):
                raise UserError(f"{self.optimizer_from} belongs to another model than {self.base}: {differences}")
            check_optimizer(checkpoint["nanochat_lit"], optimizer, self.optimizer_from)
            fresh = [
                {key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups
            ]
            optimizer.load_state_dict(checkpoint["optimizer_states"][0])
            for group, options in zip(optimizer.param_groups, fresh, strict=True):
                group.update(options)  # keep the moments, use this stage's hyper-parameters
        return optimizer


def _find_moments(path: Path) -> Path:
    """Return the checkpoint that `optimizer_from` refers to, checked before any data is read."""
    found: Path | None = path
    if path.is_dir():
        found = newest_intact(path / "checkpoints" if (path / "checkpoints").is_dir() else path)
    if found is None or not found.exists():
        raise UserError(
            f"optimizer_from {path} has no checkpoint; run the pretraining recipe first, or give its run folder or a .ckpt"
        )
    load_checkpoint(found, mmap=True)
    return found
