"""Pretraining of a GPT from scratch: its text, and the module, whose hyper-parameters derive from the depth."""

import sys
import time
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch

from nanochat_lit.common.distributed import rank, say, world_size
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import read_json, write_json
from nanochat_lit.data.loader import ResumableLoader
from nanochat_lit.data.prepared import (
    ENCODE_BATCH_SIZE,
    TOKENIZER_FOLDER,
    batched,
    check_tokenizer,
    encoded_documents,
)
from nanochat_lit.data.shards import FileSource, text_column
from nanochat_lit.data.source import TextSource
from nanochat_lit.data.stream import PretrainStream
from nanochat_lit.evaluation.bpb import document_batches
from nanochat_lit.model import GPT, GPTConfig
from nanochat_lit.model.architecture import build_model, model_class
from nanochat_lit.model.config import REFERENCE_ARCHITECTURE
from nanochat_lit.model.counted_start import MIN_TOKENS, start_from_counts
from nanochat_lit.optim import Schedule, derive_plan, micro_batches
from nanochat_lit.optim.build import EMBEDDING_LR, MATRIX_LR, SCALAR_LR, UNEMBEDDING_LR, WEIGHT_DECAY
from nanochat_lit.tokenizer import Tokenizer
from nanochat_lit.training.datamodules import Batch, LanguageDataModule
from nanochat_lit.training.module import LanguageModule

REFERENCE_VOCABULARY = 32768
"""Vocabulary size to assume until it is known."""


_LONG_DOCUMENTS = {
    "split": "split into sequences that each begin with BOS; no tokens are lost",
    "crop": "cropped; use --data.long_documents split to keep the remainder",
}


def pin_validation(path: Path, found: dict[str, str], must_match: bool) -> None:
    """Write the checksums (SHA-256 by name) of the validation files, or compare them with those of the run's start.

    If they `must_match` (the run is resumed or evaluated), a UserError names a file that is missing or differs.
    """
    if not (must_match and path.is_file()):
        if found:
            write_json(path, found)
        return
    for name, sha256 in read_json(path).items():
        if name not in found:
            others = ", ".join(found) or "nothing"
            raise UserError(f"this run validates with '{name}', but the data now have {others}; restore the file")
        if found[name] != sha256:
            raise UserError(
                f"the validation file '{name}' has changed since this run began (sha256 {found[name]}, then {sha256}): "
                "metrics would not be comparable; restore the file, or start a new run"
            )


class TextDataModule(LanguageDataModule):
    """Pretraining text from .parquet, .jsonl or .txt files, from shards written by `data prepare`, or from a source.

    Args:
        path: File or folder. File names such as train, val and test determine the split. Otherwise the last file by
            name, or the last 1% of a single file, is for validation.
        source: Text source to use instead of a path, such as nanochat_lit.data.hub_files.ClimbMix; it has its own seed.
        mirror: URL of a folder with the same files, to download from instead of the hub.
        tokenizer: Folder of a tokenizer; None uses the tokenizer of prepared shards, or trains one in the run folder on
            the training split.
        vocab_size: Vocabulary size of a tokenizer trained here: a number, or auto (by corpus size and depth).
        micro_batch_size: Sequences per device per forward pass: a number, or auto (the most that fit the device's
            memory).
        long_documents: split cuts documents longer than the context into chunks that each begin with BOS; crop drops
            the remainder. The default is split, which keeps all of a small corpus and trains equally well per token.
        buffer_size: Documents that best-fit packing chooses from.
        val_docs: Number of validation documents to evaluate on.
        tokenizer_chars: Maximum number of characters to train a tokenizer on.
        split_scripts: Split tokens at changes of script, treating punctuation as a script: true, false, or auto (true
            up to depth 7). For a tokenizer trained here.
        num_workers: Loader processes; 0 reads in the training process.
        seed: Seed of the order of files, row groups and records of a path.
        validation: Name of the validation file in the folder `path`; None decides by the file names.
    """

    def __init__(  # noqa: PLR0913 - the signature is the list of keys that a recipe can set
        self,
        path: str | None = None,
        source: TextSource | None = None,
        mirror: str | None = None,
        tokenizer: str | None = None,
        vocab_size: int | Literal["auto"] = "auto",
        micro_batch_size: int | Literal["auto"] = 8,
        long_documents: Literal["split", "crop"] = "split",
        buffer_size: int = 1000,
        val_docs: int = 100,
        tokenizer_chars: int = 2_000_000_000,
        split_scripts: bool | Literal["auto"] = "auto",
        num_workers: int = 0,
        seed: int = 0,
        validation: str | None = None,
    ) -> None:
        super().__init__(tokenizer, micro_batch_size, num_workers, seed)
        if (path is None) == (source is None):
            both = "are both set; set one of them to null" if path is not None else "are both null; set one of them"
            raise UserError(f"data.path and data.source {both}")
        self.path = path
        self.mirror = mirror
        self.vocab_size: int | Literal["auto"] = vocab_size
        self.long_documents: Literal["split", "crop"] = long_documents
        self.buffer_size = buffer_size
        self.val_docs = val_docs
        self.tokenizer_chars = tokenizer_chars
        self.split_scripts: bool | Literal["auto"] = split_scripts
        self.validation = validation
        self._source = source

    @cached_property
    def source(self) -> TextSource:
        """Source of the text."""
        if self._source is not None:
            return self._source
        return FileSource(cast(str, self.path), text_column(self.path), self.seed, self.validation)

    def prepare_data(self) -> None:
        """Download and check the data, pin the validation files, and train a tokenizer if the run has none."""
        assert self.trainer is not None
        module = cast(PretrainModule, self.module)
        module.check_batch(self.rows, self.trainer.world_size)
        if self.path is None:
            print(f"data: {self.source.name}", file=sys.stderr)
        self.source.prepare(self.mirror)
        self.source.check()
        if isinstance(self.source, FileSource):
            print(f"data: {self.source.summary()}", file=sys.stderr)
        pin_validation(
            self.run_dir / "validation.json",
            self.source.validation(),
            must_match=module.is_resuming or self.trainer.state.fn != "fit",
        )
        if self.tokenizer_path is not None:
            return
        if text_column(self.path) == "tokens" and not (self.run_dir / "tokenizer").exists():
            Tokenizer.load(Path(cast(str, self.path)) / TOKENIZER_FOLDER).save(self.run_dir / "tokenizer")
        if (self.run_dir / "tokenizer").exists():
            self._check_own_tokenizer()
            return
        print("training the tokenizer ...", file=sys.stderr)
        tokenizer = Tokenizer.train(
            self.source.documents("train"), self.vocab_size, max_chars=self.tokenizer_chars, depth=module.depth,
            split_scripts=self.split_scripts,
        )  # fmt: skip
        tokenizer.save(self.run_dir / "tokenizer")
        rule = "" if self.vocab_size != "auto" else f" (auto: from depth {module.depth} and corpus size)"
        print(f"tokenizer: {tokenizer.vocab_size:,} tokens{rule}", file=sys.stderr)

    def teardown(self, stage: str) -> None:
        self.source.close()

    def _check_own_tokenizer(self) -> None:
        folder = self.run_dir / "tokenizer"
        found = Tokenizer.load(folder).vocab_size
        if self.vocab_size not in ("auto", found):
            raise UserError(
                f"{folder} is from an earlier run and has {found} tokens, but vocab_size is {self.vocab_size}; "
                "use another run_dir, or delete that folder"
            )
        print(f"tokenizer: {folder}, {found:,} tokens", file=sys.stderr)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if isinstance(self.source, FileSource) and self.source.column == "tokens":
            check_tokenizer(self.source.path, self.tokenizer)  # before anything is read with it

    def train_dataloader(self) -> ResumableLoader:
        say(f"documents longer than the context: {_LONG_DOCUMENTS[self.long_documents]}")
        return self.loader(
            PretrainStream(
                texts=self.source,
                tokenizer=self.tokenizer,
                sequence_len=self.sequence_len,
                micro_batch_size=self.rows,
                seed=self.seed,
                rank=rank(),
                world_size=world_size(),
                buffer_size=self.buffer_size,
                long_documents=self.long_documents,
            )
        )

    def first_tokens(self, count: int) -> torch.Tensor:
        """Return the first tokens of the training text in its order of epoch 0, (count,) or all; the same on every rank."""
        taken: list[np.ndarray] = []
        left = count
        for items in batched(self.source.documents("train"), ENCODE_BATCH_SIZE):
            is_text = isinstance(items[0], str)
            taken += encoded_documents(self.tokenizer, items, torch.get_num_threads()) if is_text else items
            left -= sum(map(len, taken[-len(items) :]))
            if left <= 0:
                break
        return torch.from_numpy(np.concatenate(taken)[:count].astype(np.int64))

    def val_batches(self) -> Iterator[Batch]:
        """Yield batches of whole validation documents."""
        texts = islice(self.source.documents("val"), self.val_docs)
        return document_batches(texts, self.tokenizer, self.sequence_len, self.rows)


class PretrainModule(LanguageModule):
    """Pretrains a GPT. Defaults derive from `depth`; explicit values override them.

    Args:
        depth: Number of layers; determines width, heads, batch, steps, learning rates and weight decay.
        sequence_len: Context length, tokens.
        head_dim: Channels per attention head.
        aspect_ratio: Channels of width per layer of depth.
        n_embd: Width; None derives it from depth and aspect_ratio.
        n_head: Number of query heads; None derives it from the width and head_dim.
        n_kv_head: Key/value heads; fewer than n_head is grouped-query attention.
        window_pattern: Attention windows, S (short) and L (long), repeated over the layers; None is SSSL (qwen3: L).
        bigram_factor: Hashed bigram embedding with bigram_factor * vocab_size entries (for example 5); 0 disables it.
        architecture: nanochat, qwen3 (runs in llama.cpp, vLLM, MLX and transformers as it is), nanochat2025, nanochat2026,
            or the class path of a subclass of GPT (see the page on extending).
        tie_embeddings: Use one matrix as embedding and unembedding; architecture qwen3 only.
        tokens_per_step: Tokens per optimizer step over all ranks; None derives it.
        target_param_data_ratio: Tokens per scaling parameter; determines the length of the run.
        num_steps: Optimizer steps; None derives them. trainer.max_steps overrides it.
        target_flops: Compute budget of the run, FLOPs; used if num_steps is not set.
        unembedding_lr: AdamW learning rate of lm_head at width 768 and 2^19 tokens per step.
        embedding_lr: AdamW learning rate of the token embedding at the same reference; value and bigram embeddings use
            half.
        matrix_lr: Muon learning rate at 2^19 tokens per step.
        scalar_lr: AdamW learning rate of the residual scalars.
        weight_decay: Weight decay of the matrices at the reference batch and horizon.
        warmup: Steps of linear learning-rate warmup.
        warmdown: Fraction of the run over which learning rates decay.
        final_lr_fraction: Final learning rate as a fraction of its maximum.
        momentum_warmup: Steps over which Muon momentum rises.
        sampled_softmax: Tokens in the softmax of the training loss beside those that occur in the batch, a random sample with
            weights (for example 1024); saves time on a CPU, needs the C++ kernel. 0 uses all, as validation does.
        counted_tokens: Tokens of the training text whose pairs and triples are counted to set embedding, unembedding and
            bigram embedding before the first step (for example 4000000); 0 starts at random.
        options: Options of `LanguageModule`.
    """

    stage = "pretrain"
    speaks_chat = False

    def __init__(  # noqa: PLR0913 - the signature is the list of keys that a recipe can set
        self,
        depth: int = 12,
        sequence_len: int = 2048,
        head_dim: int = 128,
        aspect_ratio: int = 64,
        n_embd: int | None = None,
        n_head: int | None = None,
        n_kv_head: int | None = None,
        window_pattern: str | None = None,
        bigram_factor: int = 0,
        architecture: str = REFERENCE_ARCHITECTURE,
        tie_embeddings: bool = False,
        tokens_per_step: int | None = None,
        target_param_data_ratio: float = 12.0,
        num_steps: int | None = None,
        target_flops: float | None = None,
        unembedding_lr: float = UNEMBEDDING_LR,
        embedding_lr: float = EMBEDDING_LR,
        matrix_lr: float = MATRIX_LR,
        scalar_lr: float = SCALAR_LR,
        weight_decay: float = WEIGHT_DECAY,
        warmup: int = 40,
        warmdown: float = 0.65,
        final_lr_fraction: float = 0.05,
        momentum_warmup: int = 400,
        sampled_softmax: int = 0,
        counted_tokens: int = 0,
        **options: Any,
    ) -> None:
        learning_rates = {"unembedding_lr": unembedding_lr, "embedding_lr": embedding_lr, "matrix_lr": matrix_lr, "scalar_lr": scalar_lr}  # fmt: skip
        super().__init__(learning_rates=learning_rates, **options)
        self.depth, self.sequence_len = depth, sequence_len
        self.num_steps, self.num_sampled, self.counted_tokens = num_steps, sampled_softmax, counted_tokens
        self.shape: dict[str, Any] = {
            "head_dim": head_dim, "aspect_ratio": aspect_ratio, "n_embd": n_embd, "n_head": n_head, "n_kv_head": n_kv_head,
            "window_pattern": window_pattern, "bigram_factor": bigram_factor, "architecture": architecture, "tie_embeddings": tie_embeddings,
        }  # fmt: skip
        self.horizon: dict[str, Any] = {
            "tokens_per_step": tokens_per_step, "target_param_data_ratio": target_param_data_ratio, "target_flops": target_flops, "weight_decay": weight_decay,
        }  # fmt: skip
        self.schedule_options: dict[str, Any] = {"warmup": warmup, "warmdown": warmdown, "final_lr_fraction": final_lr_fraction, "momentum_warmup": momentum_warmup}  # fmt: skip
        self.build_config(REFERENCE_VOCABULARY)  # reports invalid dimensions before any data is read

    def build_config(self, vocab_size: int) -> GPTConfig:
        """Return the model configuration for a vocabulary size."""
        if self.num_sampled < 0:
            raise UserError(f"sampled_softmax is {self.num_sampled}; it must be at least 0, which uses all tokens")
        if self.counted_tokens < 0:
            raise UserError(f"counted_tokens is {self.counted_tokens}; it must be at least 0, which starts at random")
        if self.counted_tokens and self.shape["tie_embeddings"]:
            raise UserError(
                "counted_tokens sets an unembedding of its own; use tie_embeddings false, or counted_tokens 0"
            )
        model_class(self.shape["architecture"], is_trusted=True)
        return GPTConfig.from_depth(self.depth, vocab_size=vocab_size, sequence_len=self.sequence_len, **self.shape)

    def config_before_data(self, vocab_size: int | str = "auto") -> GPTConfig:
        """Return the configuration, with nanochat's vocabulary size if the size is not known yet."""
        return self.build_config(vocab_size if isinstance(vocab_size, int) else REFERENCE_VOCABULARY)

    def start_from(self) -> Tokenizer | None:
        """Return None: the data determine the tokenizer."""
        return None

    def check_batch(self, micro_batch_size: int, world_size: int, vocab_size: int | str = "auto") -> None:
        """Raise UserError for a batch that the ranks' micro-batches cannot fill.

        A derived batch size depends slightly on the vocabulary size. While that is unknown, the check only assumes that
        the batch size is a power of two.
        """
        tokens_per_step = self.horizon["tokens_per_step"]
        unit = micro_batch_size * self.sequence_len * world_size
        if tokens_per_step is None:
            if not isinstance(vocab_size, int) and unit & (unit - 1) == 0:
                return
            config = self.config_before_data(vocab_size)
            tokens_per_step = derive_plan(config, num_steps=self.num_steps, **self.horizon).tokens_per_step
        micro_batches(tokens_per_step, micro_batch_size, self.sequence_len, world_size)

    def configure_model(self) -> None:
        """Build the model once data and tokenizer are ready."""
        if hasattr(self, "model"):
            return
        datamodule = self.datamodule
        config = self.build_config(datamodule.tokenizer.vocab_size)
        plan = derive_plan(config, num_steps=self.requested_steps(self.num_steps), **self.horizon)
        model = build_model(config, is_trusted=True)  # the precision plugin sets its compute dtype
        model.init_weights()
        if self.counted_tokens and self.trainer.state.fn == "fit" and not self.is_resuming:
            self._start_from_counts(model)
        model.num_sampled = self.num_sampled
        self.adopt(model, datamodule.tokenizer)
        self.start_plan(plan, Schedule(num_steps=plan.num_steps, **self.schedule_options))

    def _start_from_counts(self, model: GPT) -> None:
        start = time.perf_counter()
        tokens = cast(TextDataModule, self.datamodule).first_tokens(self.counted_tokens)
        if len(tokens) < MIN_TOKENS:
            self.notes["start"] = f"random: the training text has {len(tokens)} token(s), too few to count triples"
            return
        start_from_counts(model, tokens)
        self.notes["start"] = f"counts of {len(tokens):,} tokens, {time.perf_counter() - start:.0f} s"
