"""Python's side of decode_kernel.cpp: linear layers, a decode step of a SlotCache, a chunk of a prompt, in one call each.

A step of torch is hundreds of small operations; for a small model they cost several times what reading its weights does.
Here a step is one call, at the speed of the memory.
"""

import ctypes
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from nanochat_lit.common.compilers import cpp_library, instructions, library_problem
from nanochat_lit.common.paths import read_json, write_json
from nanochat_lit.model.config import REFERENCE_ARCHITECTURE, GPTConfig
from nanochat_lit.model.gpt import GPT
from nanochat_lit.model.kv_cache import KVCache
from nanochat_lit.model.slot_cache import SlotCache
from nanochat_lit.model.transformer import bigram_ids, previous_tokens

_SOURCE = Path(__file__).parent / "decode_kernel.cpp"

BLOCK = 16
"""Number of outputs whose weights are adjacent, as in decode_kernel.cpp."""

CHUNK = 256
"""Prompt tokens per call, which limits the memory of their states."""

MAX_SLOWDOWN = 2.0
"""Times PyTorch's duration from which on PyTorch is preferred: far beyond the noise of a busy machine."""


KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
"""Weight dtypes, as in decode_kernel.cpp."""
WIDENED = 3
"""Weights in bfloat16 whose inputs stay in float32."""
INT4 = 4
"""Weights of 4 bits in groups."""

GROUP = 32
"""Inputs whose 4-bit weights share a scale."""

_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_float


class _Matrix(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in ("weights", "scales", "sums")),
        *((name, _INT) for name in ("kind", "outputs", "inputs", "words")),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Matrix) for name in ("q", "k", "v", "proj", "fc", "out")),
        *((name, _POINTER) for name in ("gate", "value_table", "keys", "values")),
        *((name, _INT) for name in ("room", "room_stride", "window")),
        *((name, _FLOAT) for name in ("resid", "x0")),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        ("layers", _POINTER),
        ("head", _Matrix),
        *((name, _POINTER) for name in ("embeddings", "bigram", "previous", "cos", "sin", "smear_gate")),
        *((name, _FLOAT) for name in ("smear_lambda", "backout", "eps")),
        *((name, _INT) for name in ("n_layer", "n_embd", "n_head", "n_kv_head", "head_dim")),
        *(
            (name, _INT)
            for name in ("smear_channels", "gate_channels", "vocab_size", "is_bfloat16", "is_bfloat16_cache")
        ),
    )


class _Reading(ctypes.Structure):
    _fields_ = (*((name, _POINTER) for name in ("keys", "values", "before", "after")), ("room", _INT))


@lru_cache(maxsize=1)
def kernel_library() -> ctypes.CDLL | None:
    """Return the compiled kernel, built on first use; None if it cannot be built."""
    library = cpp_library(_SOURCE)
    if library is not None:
        sizes = (ctypes.c_int64 * 4)()
        library.struct_sizes(sizes)
        expected = [ctypes.sizeof(struct) for struct in (_Matrix, _Layer, _Model, _Reading)]
        assert list(sizes) == expected, f"structures of decode_kernel.cpp have {list(sizes)} bytes, here {expected}"
        library.workspace_floats.restype = ctypes.c_int64
        library.workspace_floats.argtypes = [_POINTER, _INT, _INT, _INT]
        library.run_step.argtypes = [*[_POINTER] * 5, _INT, _INT, _INT, _POINTER, _POINTER]
        library.linear.argtypes = [_POINTER, _POINTER, _POINTER, _INT, _INT, _INT]
        library.run_step.restype = library.linear.restype = None
        library.use_tiles.argtypes, library.use_tiles.restype = [_INT], _INT
    return library


def kernel_name() -> str:
    """Return the instruction sets that the kernel uses on this machine, such as AVX2."""
    library = kernel_library()
    assert library is not None, "called without a kernel"
    name = instructions(library)
    return name if library.use_tiles(1) else name.removesuffix(", AMX")  # the system may refuse these registers


def uncovered(config: GPTConfig) -> str:
    """Return why the kernel does not support this config; empty if it does."""
    if type(config) is not GPTConfig:
        return f"it does not know {type(config).__name__}"
    if config.architecture != REFERENCE_ARCHITECTURE:
        return f"it does not know the architecture {config.architecture}"
    widths = {"n_embd": config.n_embd, "head_dim": config.head_dim}
    wrong = [f"{name} {width}" for name, width in widths.items() if width % BLOCK]
    return f"{' and '.join(wrong)} must be a multiple of {BLOCK}" if wrong else ""


def kernel_obstacle(model: GPT) -> str:
    """Return why PyTorch instead of the kernel computes this model's decode steps; empty if the kernel does."""
    if type(model) is not GPT:
        return f"it does not know {type(model).__name__}"
    if model.device.type != "cpu":
        return f"it is for CPUs, the model is on {model.device}"
    if model.compute_dtype not in (torch.float32, torch.bfloat16):
        return f"it computes in float32 and bfloat16, not in {model.compute_dtype}"
    if cast("nn.Embedding", model.transformer["wte"]).weight.dtype != model.compute_dtype:
        return "the embedding is not stored in the compute dtype"
    return uncovered(model.config) or library_problem(_SOURCE) or _slowdown()


@lru_cache(maxsize=1)
def _slowdown() -> str:
    """Return where the kernel is slower than PyTorch, measured once and stored next to the library."""
    library = kernel_library()
    assert library is not None, "called without a kernel"
    path = Path(library._name).with_suffix(".speed.json")
    if not path.exists():
        write_json(path, {"decoding": _times_of_pytorch(1), "prompts": _times_of_pytorch(128)})
    slow = [f"{times:.1f} times slower in {name}" for name, times in read_json(path).items() if times > MAX_SLOWDOWN]
    return f"than PyTorch it is {' and '.join(slow)} here" if slow else ""


def _times_of_pytorch(rows: int) -> float:
    """The kernel's duration over PyTorch's, of a layer: the fastest of several runs by turns.

    With one thread: on a busy machine several wait for each other for longer than they compute.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    weight, inputs = (torch.randn(n, 256, generator=generator) for n in (1024, rows))
    kernel = KernelLinear(weight)
    try:
        pairs = [(_seconds(kernel, inputs), _seconds(weight.matmul, inputs.T)) for _ in range(20)]
    finally:
        torch.set_num_threads(threads)
    ours, theirs = (min(times) for times in zip(*pairs, strict=True))
    return ours / theirs


def _seconds(compute: Callable[[Tensor], Tensor], inputs: Tensor) -> float:
    start_s = time.perf_counter()
    compute(inputs)
    return time.perf_counter() - start_s


class KernelLinear(nn.Module):
    """A linear layer whose weight lies in the kernel's order: blocks of 16 outputs, inputs one after the other.

    The weight, (M, K), is in float32 or bfloat16, or in int8 with scales of its rows, (M,) float32, or of groups of 32
    inputs, (M, groups) bfloat16, whose weights are from -8 to 7.
    """

    def __init__(self, weight: Tensor, scales: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.has_4_bits = scales is not None and scales.ndim == 2
        outputs = -(-self.out_features // BLOCK) * BLOCK
        multiple = GROUP if self.has_4_bits else 4 // weight.dtype.itemsize
        padded = torch.zeros((outputs, -(-self.in_features // multiple) * multiple), dtype=weight.dtype)
        padded[: self.out_features, : self.in_features] = weight.detach()
        self._sums = padded.sum(dim=1, dtype=torch.int32) if scales is not None else torch.zeros(0, dtype=torch.int32)
        self._scales = torch.zeros(0)
        if scales is not None:
            self._scales = scales.new_zeros((outputs, *scales.shape[1:]))
            self._scales[: self.out_features] = scales
        if self.has_4_bits:
            self._scales = self._scales.view(outputs // BLOCK, BLOCK, -1).transpose(1, 2).contiguous()
            low, high = (padded + 8).view(torch.uint8).view(outputs, -1, 2, 4).unbind(2)
            padded = (low | high << 4).flatten(1)
        in_words = padded.view(outputs // BLOCK, BLOCK, -1, 4 // padded.dtype.itemsize)
        self._packed = in_words.transpose(1, 2).contiguous()
        self.dtype = weight.dtype

    @property
    def stored_as(self) -> str:
        """Names the form of the weights, such as bfloat16."""
        return f"4 bits in groups of {GROUP}" if self.has_4_bits else str(self.dtype).removeprefix("torch.")

    @property
    def num_bytes(self) -> int:
        """Bytes that a product reads."""
        return self._packed.nbytes + self._scales.nbytes

    def matrix(self, activations: torch.dtype) -> Any:
        """Returns the layer as the kernel takes it for inputs of a dtype; valid while this module lives."""
        pointers = (self._packed.data_ptr(), self._scales.data_ptr(), self._sums.data_ptr())
        is_widened = self.dtype == torch.bfloat16 and activations == torch.float32
        kind = INT4 if self.has_4_bits else WIDENED if is_widened else KINDS[self.dtype]
        return _Matrix(*pointers, kind, self.out_features, self.in_features, self._packed.shape[1])

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in nn.Linear
        """Map the last dimension, (..., K) -> (..., M), in the input's dtype, float32 or bfloat16."""
        rows = input.reshape(-1, self.in_features).contiguous()
        out = torch.empty((len(rows), self.out_features), dtype=input.dtype)
        library = kernel_library()
        assert library is not None, "a KernelLinear is made only where there is a kernel"
        is_bfloat16, threads = input.dtype == torch.bfloat16, torch.get_num_threads()
        matrix = ctypes.byref(self.matrix(input.dtype))
        library.linear(matrix, rows.data_ptr(), out.data_ptr(), len(rows), int(is_bfloat16), threads)
        return out.view(*input.shape[:-1], self.out_features)


class DecodeKernel:
    """Decode steps and prompts of a model whose linear layers are `KernelLinear`s; keeps what it needs of it alive."""

    def __init__(self, model: GPT) -> None:
        config = model.config
        self._config = config
        self._cos, self._sin = model.cos.float().contiguous(), model.sin.float().contiguous()
        self._smear_gate = model.smear_gate.weight.detach().float().contiguous()
        self._tables = {name: cast("nn.Embedding", table).weight for name, table in model.value_embeds.items()}
        self._embeddings = cast("nn.Embedding", model.transformer["wte"]).weight
        self._bigram = None if model.bigram is None else model.bigram.weight
        self._gates = {}
        self._layers = (_Layer * config.n_layer)()
        resid, x0 = model.resid_lambdas.detach().tolist(), model.x0_lambdas.detach().tolist()
        for number, (block, layer) in enumerate(zip(model.blocks, self._layers, strict=True)):
            attention, mlp = block.attn, block.mlp
            linears = (attention.c_q, attention.c_k, attention.c_v, attention.c_proj, mlp.c_fc, mlp.c_proj)
            for name, linear in zip(("q", "k", "v", "proj", "fc", "out"), linears, strict=True):
                setattr(layer, name, linear.matrix(model.compute_dtype))
            layer.window = config.windows[number]
            layer.resid, layer.x0 = resid[number], x0[number]
            if config.has_value_embedding(number):
                gate = self._gates[number] = attention.ve_gate.weight.detach().float().contiguous()
                layer.gate, layer.value_table = gate.data_ptr(), self._tables[str(number)].data_ptr()
        self._linears = [module for module in model.modules() if isinstance(module, KernelLinear)]
        self._model = _Model(
            layers=ctypes.addressof(self._layers),
            head=cast("KernelLinear", model.lm_head).matrix(model.compute_dtype),
            embeddings=self._embeddings.data_ptr(),
            bigram=None if self._bigram is None else self._bigram.data_ptr(),
            cos=self._cos.data_ptr(),
            sin=self._sin.data_ptr(),
            smear_gate=self._smear_gate.data_ptr(),
            smear_lambda=model.smear_lambda.detach().item(),
            backout=model.backout_lambda.detach().item(),
            eps=torch.finfo(torch.float32).eps,
            n_layer=config.n_layer,
            n_embd=config.n_embd,
            n_head=config.n_head,
            n_kv_head=config.n_kv_head,
            head_dim=config.head_dim,
            smear_channels=self._smear_gate.numel(),
            gate_channels=next((gate.shape[1] for gate in self._gates.values()), 0),
            vocab_size=config.vocab_size,
            is_bfloat16=model.compute_dtype == torch.bfloat16,
        )
        self._cache: SlotCache | None = None
        self._workspace = torch.empty(0)

    def __call__(self, token_ids: Tensor, cache: SlotCache | KVCache) -> Tensor:
        """Return the softcapped float32 logits, (B, V), after some tokens, which are added to the cache, not counted.

        They are one more token of every slot, (B, 1), or the next tokens of one prompt, (1, T).
        """
        if isinstance(cache, SlotCache):
            if cache is not self._cache:
                self._bind(cache)
            pairs = self._pairs(token_ids, cache)[:, 0]
            return self._run(token_ids[:, 0], pairs, cache.lengths(len(token_ids)), None, len(token_ids), cache.max_len)
        assert cache.batch_size == len(token_ids) == 1, "prompts are read one by one"
        assert cache.keys.dtype == self._embeddings.dtype, "the kernel reads and writes the model's compute dtype"
        keys, values = cache.keys.data_ptr(), cache.values.data_ptr()
        logits, start = torch.empty(0), cache.position
        if start + token_ids.shape[1] > cache.max_len:  # would write past the end of the cache
            raise IndexError(f"{start} tokens and {token_ids.shape[1]} more do not fit a cache of {cache.max_len}")
        pairs = self._pairs(token_ids, cache)[0]
        for tokens, their_pairs in zip(token_ids[0].split(CHUNK), pairs.split(CHUNK), strict=True):
            after = torch.empty((1, 1, self._config.n_embd), dtype=cache.keys.dtype)
            before = None if cache.previous_embedding is None else cache.previous_embedding.data_ptr()
            reading = _Reading(keys, values, before, after.data_ptr(), cache.max_len)
            end = start + len(tokens)
            logits = self._run(tokens, their_pairs, range(start, end), reading, 1, end)
            start, cache.previous_embedding = end, after
        return logits

    def _pairs(self, token_ids: Tensor, cache: SlotCache | KVCache) -> Tensor:
        """Entries of the bigram embedding, (B, T); ignored by the kernel without one."""
        if self._bigram is None:
            return token_ids
        return bigram_ids(token_ids, previous_tokens(token_ids, cache), self._config.num_bigram_rows)

    def _run(
        self,
        token_ids: Tensor,
        pairs: Tensor,
        positions: Sequence[int],
        reading: _Reading | None,
        num_logits: int,
        room: int,
    ) -> Tensor:
        library = kernel_library()
        assert library is not None, "made only where there is a kernel"
        rows, threads, model = len(token_ids), torch.get_num_threads(), ctypes.byref(self._model)
        size = library.workspace_floats(model, rows, threads, room)
        if self._workspace.numel() < size:
            self._workspace = torch.empty(size)
        lowest, highest = map(int, token_ids.aminmax())
        if lowest < 0 or highest >= len(self._embeddings):  # the kernel would read beside the table
            raise IndexError(
                f"token ids run from {lowest} to {highest}, the table's from 0 to {len(self._embeddings) - 1}"
            )
        tokens, rows_of_pairs = token_ids.int().contiguous(), pairs.int().contiguous()
        places = torch.tensor(positions, dtype=torch.int32)
        logits = torch.empty((num_logits, self._config.vocab_size))
        numbers = tokens.data_ptr(), rows_of_pairs.data_ptr(), places.data_ptr(), rows, threads, room
        where = None if reading is None else ctypes.byref(reading)
        library.run_step(model, where, *numbers, self._workspace.data_ptr(), logits.data_ptr())
        return logits

    def _bind(self, cache: SlotCache) -> None:
        self._cache = cache  # and keep it: the kernel holds its addresses
        for layer, keys, values, room in zip(self._layers, cache.keys, cache.values, cache.rooms, strict=True):
            layer.keys, layer.values = keys.data_ptr(), values.data_ptr()
            layer.room, layer.room_stride = room, keys.shape[2]
        self._model.is_bfloat16_cache = cache.keys[0].dtype == torch.bfloat16
        self._model.previous = cache.embeddings.data_ptr()
