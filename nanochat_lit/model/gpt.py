"""The GPT: the forward pass of model/transformer.py with losses, caches, compiled parts and kernels.

Precision: no autocast. Linear weights are kept in float32 and cast to the activations' dtype where they are used;
embedding tables are kept in the compute dtype (in float32 when that is float16, whose range is too small for them).

Shapes: B sequences, T tokens, C channels (n_embd), V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.torch_internals import COSTLY_OPERATORS, operator_name
from nanochat_lit.model.attention import (
    AttentionBackend,
    WholeSequences,
    choose_attention,
    cuda_facts,
    prepare_to_compile,
    steady_kernels,
    window_block_mask,
)
from nanochat_lit.model.config import GPTConfig
from nanochat_lit.model.float8 import MULTIPLE, Float8ChunkMatmuls, Float8Linear, to_float8
from nanochat_lit.model.kv_cache import KVCache
from nanochat_lit.model.layers import Linear
from nanochat_lit.model.loss import (
    ChunkKernel,
    ChunkMatmuls,
    reduce_losses,
    softcapped_cross_entropy,
    softmax_and_slope,
    softmax_without_cap,
    token_logprobs,
    token_losses,
    total_and_token_losses,
)
from nanochat_lit.model.rotary import rotary_tables
from nanochat_lit.model.slot_cache import SlotCache
from nanochat_lit.model.transformer import Transformer

Cache: TypeAlias = KVCache | SlotCache

REDUCTIONS = ("mean", "sum", "none")

Checkpointing: TypeAlias = bool | Literal["selective"]


def _policy(_: Any, operator: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    is_costly = operator_name(operator) in COSTLY_OPERATORS
    return CheckpointPolicy.MUST_SAVE if is_costly else CheckpointPolicy.PREFER_RECOMPUTE


def checkpointed(block: Callable[..., Tensor], mode: Checkpointing, *inputs: Any) -> Tensor:
    """Return the output of the block, whose activations are recomputed in the backward pass.

    Nothing in a block is random, so no random state has to be restored.
    """
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if mode == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    result = checkpoint(block, *inputs, **options)
    assert isinstance(result, Tensor), "a block returns states"
    return result


class GPT(Transformer):
    """A GPT of the given shape. Call `init_weights` (or load weights) before use.

    Args:
        config: Model config.
        compute_dtype: Dtype of activations and matrix multiplications.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: GPTConfig, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__(config, compute_dtype)
        self.activation_checkpointing: Checkpointing = False
        """True stores only the inputs of blocks and recomputes the rest in the backward pass: a third more arithmetic, much
        less memory. "selective" recomputes everything except matmuls and attention."""
        self.register_buffer("cos", torch.empty(0), persistent=False)
        self.register_buffer("sin", torch.empty(0), persistent=False)
        self.set_compute_dtype(compute_dtype)
        self.num_sampled = 0
        """Tokens beside the targets in the softmax of the training loss, with the C++ kernel; 0 is all."""
        self._window_masks: dict[tuple[int, int], Any] = {}  # by number of tokens and window; see prepare_windows
        self._features: Callable[..., Tensor] = self.features
        self._loss_kernel = self._plain_loss_kernel
        self._scaling = to_float8
        self.decode_kernel: Callable[[Tensor, SlotCache | KVCache], Tensor] | None = None
        """Computes the logits of a decode step, or after a chunk of one prompt, in one call; see model/packed.py."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def set_compute_dtype(self, dtype: torch.dtype, *, cast_weights: bool = False) -> "GPT":
        """Set the dtype of activations (bfloat16, float16 or float32), and cast the embeddings to their storage dtype.

        `cast_weights` also stores the matrices in it, for inference: half the memory traffic, no casts.
        """
        self.compute_dtype = dtype
        table_dtype = torch.float32 if dtype == torch.float16 and not cast_weights else dtype
        for table in self.modules():
            if isinstance(table, nn.Embedding):
                table.to(table_dtype)
            elif isinstance(table, Linear) and cast_weights:
                table.to(dtype)
        self._set_rotary_tables()
        return self

    def _set_rotary_tables(self) -> None:
        if self.device.type == "meta":
            return  # `init_weights` or `load_model` will; arithmetic on meta tensors imports the whole compiler
        length, head_dim = self.config.sequence_len, self.config.head_dim
        cos, sin = rotary_tables(length, head_dim, device=self.device, base=self.rotary_base)
        self.cos, self.sin = cos.to(self.compute_dtype), sin.to(self.compute_dtype)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Initialize all parameters and buffers; see `Transformer.init_weights`."""
        super().init_weights(generator)
        self._set_rotary_tables()

    def prepare_windows(self, length: int) -> None:
        """Use FlexAttention for the windows of training sequences of one length, if the model's device supports it."""
        for attention in [block.attn for block in self.blocks]:
            is_windowed = attention.window < length - 1
            if is_windowed and self.attention_backends()[1] == "flex":
                mask = window_block_mask(length, attention.window, self.device)
                self._window_masks[length, attention.window] = mask

    def compile_for_training(self, length: int | None = None) -> None:
        """Compile the two hot parts: everything up to the last norm, and one chunk of the loss. Keys stay unchanged.

        `length` is that of training sequences; None is the context. Call it when the model is on its device.
        """
        prepare_to_compile()
        self.prepare_windows(length or self.config.sequence_len)
        self._features = torch.compile(self.features, dynamic=False)
        self._loss_kernel = torch.compile(self._plain_loss_kernel, dynamic=False)
        self._scaling = torch.compile(to_float8, dynamic=False)

    def attention_backends(self, *, is_compiling: bool = False) -> tuple[AttentionBackend, AttentionBackend]:
        """Return the attention backends of training on this device, for full attention and for windows."""
        kind, length, facts = self.device.type, self.config.sequence_len, cuda_facts(self.device)
        options = {"dtype": self.compute_dtype, "num_tokens": length, "is_compiling": is_compiling}
        choose = partial(choose_attention, kind, **options, **facts)
        return choose(is_windowed=False), choose(is_windowed=True)

    def features(self, inputs: Tensor, kv_cache: Cache | None = None) -> Tensor:
        """Return the final normalized states, (B, T, C) in the compute dtype, of (B, T) token ids."""
        length = inputs.shape[1]
        with steady_kernels(inputs.device):
            if kv_cache is None:
                return self.states(inputs, self.cos[:length], self.sin[:length], WholeSequences(self._window_masks))
            hidden = self.states(inputs, *kv_cache.rotary(self.cos, self.sin, length), kv_cache)
        kv_cache.advance(length)
        return hidden

    def run_block(self, block: nn.Module, *inputs: Any) -> Tensor:
        """Return the states after a block, recomputed in the backward pass under activation checkpointing."""
        if self.activation_checkpointing and isinstance(inputs[-1], WholeSequences) and torch.is_grad_enabled():
            return checkpointed(block, self.activation_checkpointing, *inputs)
        return block(*inputs)

    def forward(
        self,
        inputs: Tensor,
        targets: Tensor | None = None,
        reduction: str = "mean",
        kv_cache: Cache | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Return the logits, or the loss if targets are given.

        Args:
            inputs: (B, T) token ids.
            targets: (B, T) ids of the next tokens; IGNORE_INDEX (-1) does not count.
            reduction: Of the loss: "mean" over the kept targets, "sum", or "none" for (B, T).
            kv_cache: Cache of the preceding tokens; these are added.
            last_only: Return only the logits of the last position, (B, 1, V).

        Returns:
            Float32 logits (B, T, V), softcapped, or the float32 loss in nats.

        Raises:
            UserError: If the tokens do not fit the context.
        """
        end = inputs.shape[1] + (0 if kv_cache is None else kv_cache.position)
        if end > self.config.sequence_len:
            raise UserError(
                f"{end} tokens do not fit the model's context of {self.config.sequence_len}; shorten the input"
            )
        if reduction not in REDUCTIONS:
            raise UserError(f"reduction {reduction!r} is not one of {', '.join(REDUCTIONS)}")
        is_step = isinstance(kv_cache, SlotCache) or (last_only and kv_cache is not None and len(inputs) == 1)
        if targets is None and self.decode_kernel is not None and kv_cache is not None and is_step:
            logits = self.decode_kernel(inputs, kv_cache)
            kv_cache.advance(inputs.shape[1])
            return logits.unsqueeze(1)
        if targets is None:
            hidden = self.features(inputs, kv_cache)
            return self.cap_logits(self.unembed(hidden[:, -1:] if last_only else hidden))
        hidden = self._training_features(inputs) if kv_cache is None else self.features(inputs, kv_cache)
        if self._has_own_cap:
            return reduce_losses(-self._logprobs(hidden, targets)[0], targets, reduction)
        if not isinstance(self.lm_head, Linear):  # packed for inference, without a plain weight
            losses = token_losses(hidden, targets, self.unembed, self.config.vocab_size, is_capped=self.is_capped)
            return reduce_losses(losses, targets, reduction)
        return softcapped_cross_entropy(
            hidden, self._unembedding(), targets, reduction, self._loss_kernel, self._make_matmuls, self.is_capped,
            self.num_sampled,
        )  # fmt: skip

    def unembed(self, hidden: Tensor) -> Tensor:
        """Return raw logits (..., V) of final states (..., C)."""
        return self.lm_head(hidden)[..., : self.config.vocab_size]

    @property
    def _plain_loss_kernel(self) -> ChunkKernel:
        return softmax_and_slope if self.is_capped else softmax_without_cap

    @property
    def _has_own_cap(self) -> bool:
        return type(self).cap_logits is not GPT.cap_logits

    def _logprobs(self, hidden: Tensor, targets: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies as of `logprobs`, from final states."""

        def capped(rows: Tensor) -> Tensor:
            return self.cap_logits(self.unembed(rows))

        return token_logprobs(hidden, capped, targets, self.config.vocab_size, temperature)

    def loss_and_token_losses(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the training loss, the mean over the kept targets, and the losses per token, (B, T) without gradient."""
        hidden = self._training_features(inputs)
        if self._has_own_cap:
            losses = -self._logprobs(hidden, targets)[0]
            return reduce_losses(losses, targets, "mean"), losses.detach()
        total, losses = total_and_token_losses(
            hidden,
            self._unembedding(),
            targets,
            self._loss_kernel,
            self._make_matmuls,
            self.is_capped,
            self.num_sampled,
        )
        return reduce_losses(total, targets, "mean"), losses

    def logprobs(self, inputs: Tensor, targets: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return the log-probability of each next token, (B, T) nats, for objectives with token weights; and entropies.

        Targets, (B, T), of IGNORE_INDEX (-1) give 0; the temperature is that of sampling. The entropies of the
        distributions, (B, T), have no gradient.
        """
        return self._logprobs(self._training_features(inputs), targets, temperature)

    def _training_features(self, inputs: Tensor) -> Tensor:
        """Compiled only for training; evaluation has many shapes, and each would be compiled."""
        return self._features(inputs) if torch.is_grad_enabled() else self.features(inputs)

    def _make_matmuls(self, weight: Tensor, hidden: Tensor, chunk: int) -> ChunkMatmuls | Float8ChunkMatmuls:
        if isinstance(self.lm_head, Float8Linear) and chunk % MULTIPLE == len(hidden) % MULTIPLE == 0:
            return Float8ChunkMatmuls(weight, hidden.dtype, self._scaling)
        return ChunkMatmuls(weight, hidden, chunk)

    def _unembedding(self) -> Tensor:
        """Rows of lm_head without padding, (V, C)."""
        weight = self.lm_head.weight
        return weight if self.config.vocab_size == weight.shape[0] else weight[: self.config.vocab_size]
