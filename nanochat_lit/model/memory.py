"""Estimated training memory per device, computed from the model config.

The sums follow what the modules of this package keep. Per token of a micro-batch, in elements of the compute dtype: two
residual states and two inputs of linear layers of C channels, queries and keys before their norm, the MLP's hidden layer
before and after its square (8C), what attention keeps (below), and the value embedding where there is one. Without
torch.compile there is one more residual state, and a norm in 16 bits keeps its input in float32. In float8 inputs of linear
layers take one byte. Selective checkpointing keeps what enters a block, and the results of matmuls and of attention.

Attention by blocks keeps the probabilities (in float32, and again in 16 bits) of every pair of a block's queries with the
keys it meets, and copies of those keys and values. The fused kernels and FlexAttention keep queries, keys, values and output.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch.torch_version import TorchVersion

from nanochat_lit.common.compilers import has_cpp_compiler
from nanochat_lit.model.accounting import count_parameters
from nanochat_lit.model.attention import QUERY_BLOCK, choose_attention
from nanochat_lit.model.config import QWEN3, GPTConfig
from nanochat_lit.model.gpt import Checkpointing
from nanochat_lit.model.loss import rows_per_chunk
from nanochat_lit.model.qwen3 import mlp_width

CUDA_SLACK = 0.03
"""Overhead of torch's caching allocator relative to live memory (1 to 3% with expandable segments)."""

MASTER_BYTES = 4
"""Matrices, their gradients and their optimizer state are float32."""


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Estimated peak bytes on one device while training; the parts add up to `total`."""

    weights: int
    """Matrices in float32, tables in the compute dtype."""
    gradients: int
    """As the weights; under ddp with several ranks twice, as its buckets hold copies."""
    optimizer_state: int
    """Momentum of the matrices, two moments of everything else; divided among the ranks under zero."""
    activations: int
    """Kept for the backward pass of one micro-batch, with the matrices in the compute dtype."""
    workspace: int
    """Largest temporary allocation: a chunk of logits with its gradients, the backward pass of one layer, or the
    optimizer step (beyond the memory of the activations, which are freed by then)."""
    allocator: int
    """Freed memory that the allocator does not return to the system; on CPU an estimate, see `_glibc_slack`."""

    @property
    def total(self) -> int:
        """Total bytes."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True, kw_only=True)
class _Run:
    """Inputs of the estimates other than the model config."""

    rows: int
    element: int  # bytes of the compute dtype
    device_type: str
    capability: tuple[int, int] | None
    is_compiled: bool
    has_loss_kernel: bool
    is_float8: bool


def training_memory(
    config: GPTConfig,
    *,
    micro_batch_size: int,
    compute_dtype: torch.dtype = torch.bfloat16,
    device_type: str = "cuda",
    capability: tuple[int, int] | None = (8, 0),
    is_compiled: bool = True,
    activation_checkpointing: Checkpointing = False,
    fp8: bool = False,
    strategy: str = "ddp",
    world_size: int = 1,
) -> TrainingMemory:
    """Estimate the peak memory of one device, without the process itself and the CUDA context.

    `micro_batch_size` counts sequences. The device type and `capability` determine attention, "cuda" also the
    allocator. Stored embeddings have the compute dtype (float32 if it is float16). "zero" divides the optimizer state
    among the ranks.
    """
    counts = count_parameters(config)
    run = _Run(
        rows=micro_batch_size,
        element=compute_dtype.itemsize,
        device_type=device_type,
        capability=capability,
        is_compiled=is_compiled,
        has_loss_kernel=device_type == "cpu" and compute_dtype != torch.float16 and has_cpp_compiler(),
        is_float8=fp8,
    )
    tables = counts.tables * (2 if compute_dtype == torch.bfloat16 else MASTER_BYTES)
    matrices = (counts.transformer_matrices + counts.lm_head + counts.scalars) * MASTER_BYTES
    state = 2 * tables + MASTER_BYTES * (counts.transformer_matrices + 2 * (counts.lm_head + counts.scalars))
    activations, again = _activations(config, run, activation_checkpointing)
    # A compiled backward pass hands over all gradients at its end, beside those accumulated so far.
    at_the_end = tables + counts.transformer_matrices * MASTER_BYTES if is_compiled else 0
    beyond = max(at_the_end, _optimizer_step(config)) - activations
    workspace = max(_loss(config, run), again + _backward_of_a_layer(config, run), beyond)
    state //= world_size if strategy == "zero" else 1
    gradients = (tables + matrices) * (2 if strategy == "ddp" and world_size > 1 else 1)
    if device_type == "cuda":
        slack = CUDA_SLACK * (tables + matrices + gradients + state + activations + workspace)
    else:
        # a block's parts are made and dropped in the forward pass, and made again in the workspace
        passing = activations + (again + workspace if activation_checkpointing else 0)
        slack = _glibc_slack(tables + matrices + gradients + state, passing, run)
    return TrainingMemory(
        weights=tables + matrices,
        gradients=gradients,
        optimizer_state=state,
        activations=activations,
        workspace=workspace,
        allocator=int(slack),
    )


def largest_that_fits(sizes: Sequence[int], fits: Callable[[int], bool]) -> int:
    """The largest of ascending sizes that fits, a monotone predicate, found by bisection; 0 if none does."""
    low, high = -1, len(sizes)  # sizes[low] fits, sizes[high] does not
    while high - low > 1:
        middle = (low + high) // 2
        if fits(sizes[middle]):
            low = middle
        else:
            high = middle
    return sizes[low] if low >= 0 else 0


def _glibc_slack(held: int, passing: int, run: _Run) -> float:
    """Holes in the heap of a CPU process, fitted to measured peaks of resident memory (recipes/LOG.md).

    Pieces of up to 32 MB come from one heap, and what is freed between two live ones stays with the process. Eager
    steps make many such pieces, compiled ones few. `held` are bytes of weights, gradients and optimizer state,
    `passing` those of what a micro-batch makes and drops.
    """
    if run.is_compiled:
        share = 0.15 if run.element < MASTER_BYTES else 0.0
    else:  # measured on torch 2.9, 2.11, 2.13 and 2.14
        share = 0.9 if TorchVersion(torch.__version__) >= "2.13" else 1.6
    return 15e6 + 0.15 * held + share * passing


def _activations(config: GPTConfig, run: _Run, mode: Checkpointing) -> tuple[int, int]:
    """Kept from the forward for the backward pass; and what of one block is there again while its gradients are made."""
    tokens = run.rows * config.sequence_len
    layers = [_layer(config, run, layer) for layer in range(config.n_layer)]
    outside = tokens * config.n_embd * (run.element + 2 * _norm_bytes(run))  # embedding and smear, backout, last norm
    weight_bytes = 1 if run.is_float8 else run.element
    copies = 0 if weight_bytes == MASTER_BYTES else count_parameters(config).transformer_matrices * weight_bytes
    if not mode:
        return outside + sum(layers) + copies, 0
    tables = sum(config.has_value_embedding(layer) for layer in range(config.n_layer))
    # What enters each block, and the embedding, which enters all.
    entering = (config.n_layer + 1) * config.n_embd + tables * config.n_kv_head * config.head_dim
    kept = tokens * run.element * entering
    if (
        mode == "selective"
    ):  # queries, keys and values, the outputs of both layers after them, and the MLP's hidden layer
        heads, kv_width = config.n_head * MASTER_BYTES, config.n_kv_head * config.head_dim
        kept += config.n_layer * tokens * ((3 * config.n_embd + 2 * kv_width + 4 * config.n_embd) * run.element + heads)
    return outside + kept, max(layers) + copies // config.n_layer


def _norm_bytes(run: _Run) -> int:
    return run.element if run.is_compiled else MASTER_BYTES


def _layer(config: GPTConfig, run: _Run, layer: int) -> int:
    tokens, width, kv_width = run.rows * config.sequence_len, config.n_embd, config.n_kv_head * config.head_dim
    norm_bytes = _norm_bytes(run)
    residual = width * (2 * norm_bytes + (0 if run.is_compiled else run.element))
    input_bytes = 1 if run.is_float8 else run.element
    linear_inputs = 2 * width * input_bytes
    queries_and_keys = (width + kv_width) * norm_bytes
    mlp = _mlp(config, run)
    value_embedding = kv_width * run.element if config.has_value_embedding(layer) else 0
    per_token = residual + linear_inputs + queries_and_keys + mlp + value_embedding
    return tokens * per_token + _attention(config, run, layer)


def _mlp(config: GPTConfig, run: _Run) -> int:
    """Kept by an MLP, per token."""
    if config.architecture != QWEN3:
        return (4 if run.is_float8 else 8) * config.n_embd * run.element  # its square in float8 is computed again
    # the gate, what it multiplies and their product; without the compiler the activated gate, too
    return (2 if run.is_float8 else 3 if run.is_compiled else 4) * mlp_width(config) * run.element


def _attention(config: GPTConfig, run: _Run, layer: int) -> int:
    length, window = config.sequence_len, config.windows[layer]
    tokens, width, kv_width = run.rows * length, config.n_embd, config.n_kv_head * config.head_dim
    form = choose_attention(
        run.device_type,
        is_windowed=window < length - 1,
        capability=run.capability,
        num_tokens=length,
        is_compiling=run.is_compiled,
    )
    if form != "blocked":  # its output is also the input of the layer after it
        return tokens * ((2 * width + 2 * kv_width) * run.element + config.n_head * MASTER_BYTES)
    probability = MASTER_BYTES + (run.element if run.element < MASTER_BYTES else 0)
    total = 2 * tokens * width * run.element  # the blocks of queries, and the output put together again
    for start in range(0, length, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, length)
        num_keys = end - max(0, start - window)
        total += run.rows * config.n_head * (end - start) * num_keys * probability
        total += run.rows * num_keys * 2 * kv_width * run.element
    return total


def _loss(config: GPTConfig, run: _Run) -> int:
    """A chunk of logits on its way to a gradient, and the gradients that the loss has ready when forward returns."""
    tokens, vocabulary = run.rows * config.sequence_len, config.padded_vocab_size
    # The C++ kernel works in place. Five float32 forms of a chunk live at once in an eager `softmax_and_slope`.
    beside = 0 if run.has_loss_kernel else run.element if run.is_compiled else 5 * MASTER_BYTES
    chunk = rows_per_chunk(tokens, config.vocab_size) * config.vocab_size * (run.element + beside)
    copies = run.element if run.element < MASTER_BYTES else 0
    head = vocabulary * config.n_embd * (MASTER_BYTES + run.element + copies)  # the sum, a chunk's share, the weights
    return chunk + head + tokens * config.n_embd * run.element


def _backward_of_a_layer(config: GPTConfig, run: _Run) -> int:
    """The first steps back: gradients of the unembedding, scaled, and of the last MLP's hidden layer."""
    tokens = run.rows * config.sequence_len
    head = config.padded_vocab_size * config.n_embd * MASTER_BYTES
    hidden = tokens * config.n_embd * run.element
    return max(2 * head + 2 * hidden, (3 * 4 + 3) * hidden)


def _optimizer_step(config: GPTConfig) -> int:
    """Muon on the largest stack of one shape: gradients, parameters, direction and the products on the way."""
    kv_width = config.n_kv_head * config.head_dim
    square = 2 * config.n_embd**2 + (2 * config.n_embd**2 if kv_width == config.n_embd else 0)
    mlp = 2 * mlp_width(config) if config.architecture == QWEN3 else 4 * config.n_embd
    return config.n_layer * max(square, mlp * config.n_embd) * 22
