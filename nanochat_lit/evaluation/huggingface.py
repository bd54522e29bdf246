"""Causal language models in Hugging Face folders, evaluated by the same code as exports.

Reads only local files, never the hub, and only safetensors weights, which cannot execute code.
"""

import inspect
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from nanochat_lit.common.errors import UserError, missing_package, require_version
from nanochat_lit.common.hardware import find_device, resolve_compute_dtype
from nanochat_lit.common.paths import read_json
from nanochat_lit.engine.sampling_params import SamplingParams
from nanochat_lit.evaluation.scoring import RowScorer, grouped
from nanochat_lit.model import IGNORE_INDEX
from nanochat_lit.tokenizer import Tokenizer

TOKENS_PER_PASS = 2048
"""Tokens per forward pass on a CPU; limited because these models have large vocabularies."""

CACHED_TOKENS = 1 << 14
"""Tokens generated concurrently, including prompts; bounds the KV cache (2 GB for a 1B model)."""


def is_huggingface(folder: str | Path) -> bool:
    """Return whether a folder's config.json has model_type or architectures, as Hugging Face models do."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        return False
    content = read_json(path)
    return isinstance(content, dict) and ("model_type" in content or "architectures" in content)


def refuse_huggingface(folder: str | Path, what: str) -> None:
    """Raise UserError for a folder with a Hugging Face model, where an operation (`what`) needs an export."""
    if is_huggingface(folder):
        raise UserError(
            f"{folder} is a Hugging Face model, but {what} needs a nanochat-lit export; "
            "core, chat, bpb and samples also evaluate Hugging Face models"
        )


class HuggingFaceTokenizer:
    """Adapter of a transformers tokenizer for evaluations.

    `bos_id`, which precedes every text, is the tokenizer's bos token, else its eos token; without either it raises
    UserError.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.whole = tokenizer
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if first is None:
            raise UserError("the tokenizer has no bos and no eos token, so a text's first token cannot be predicted")
        self.bos_id, self.vocab_size = int(first), len(tokenizer)

    def encode(self, text: str, prepend_bos: bool = False) -> list[int]:
        """Encode a text; control tokens spelled out in the text are encoded as text."""
        return [self.bos_id] * prepend_bos + self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:  # noqa: ARG002
        """Return the token ids of each text; the library ignores `num_threads`."""
        return self.whole(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text, without control tokens."""
        return self.whole.decode(list(token_ids), skip_special_tokens=True)

    @property
    def has_template(self) -> bool:
        """Whether the tokenizer has a chat template; base models have none."""
        return bool(getattr(self.whole, "chat_template", None))

    def conversation_text(self, messages: Sequence[dict[str, str]], is_open: bool = True) -> str:
        """Render a conversation of strings with the tokenizer's chat template, with the beginning of the next answer."""
        from jinja2 import TemplateError

        try:
            return self.whole.apply_chat_template(list(messages), add_generation_prompt=is_open, tokenize=False)
        except (TemplateError, ImportError) as error:
            raise UserError(f"the chat template of this tokenizer fails: {error}") from None

    def encode_conversation(self, text: str) -> list[int]:
        """Encode the result of `conversation_text`, including control tokens."""
        return self.whole(text, add_special_tokens=False, verbose=False)["input_ids"]

    def render_question(self, question: str) -> list[int]:
        """Return the prompt for the answer to a user message, by the tokenizer's chat template; UserError without one."""
        if not self.has_template:
            raise UserError("this tokenizer has no chat template (as for base models); use --chat false")
        return self.encode_conversation(self.conversation_text([{"role": "user", "content": question}]))


TextTokenizer = Tokenizer | HuggingFaceTokenizer


class HuggingFaceModel:
    """Adapter of a transformers causal language model with its tokenizer."""

    def __init__(self, model: Any, tokenizer: HuggingFaceTokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.device, self.compute_dtype = model.device, model.dtype
        config = model.config.get_text_config()
        self.vocab_size = int(model.get_output_embeddings().weight.shape[0])
        limits = [getattr(config, "max_position_embeddings", None), tokenizer.whole.model_max_length]
        fitting = [int(limit) for limit in limits if limit is not None and 0 < limit < 1 << 24]
        if not fitting:
            raise UserError(
                "neither config.json (max_position_embeddings) nor the tokenizer defines the context length"
            )
        self.sequence_len = fitting[0]
        self.keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.has_plain_cache = _has_plain_cache(model)
        own = getattr(model.generation_config, "eos_token_id", None)
        ends = [tokenizer.whole.eos_token_id, *(own if isinstance(own, list) else [own])]
        self.end_ids = sorted({int(end) for end in ends if end is not None})

    def __call__(self, inputs: Tensor, targets: Tensor, reduction: str = "none") -> Tensor:
        """Return the loss of each target, (B, T) float32 nats, 0 for IGNORE_INDEX."""
        assert reduction == "none"
        logits = self.model(input_ids=inputs, use_cache=False).logits.float()
        flat = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="none")
        return flat.view(targets.shape)

    def generate_batch(self, prompts: Sequence[Sequence[int]], **sampling: Any) -> list[list[int]]:
        """Return a completion of each prompt, without the end token; the samples depend on the other prompts, too.

        `sampling` are fields of `SamplingParams`; max_new_tokens is 64 by default.
        """
        settings = SamplingParams(**{"max_new_tokens": 64, **sampling})
        for prompt in prompts:
            if len(prompt) >= self.sequence_len:
                raise UserError(
                    f"a prompt of {len(prompt)} tokens leaves no space in the context of {self.sequence_len}; shorten it"
                )
        limits = [min(settings.max_new_tokens, self.sequence_len - len(prompt)) for prompt in prompts]
        completions: list[list[int]] = [[] for _ in prompts]
        has_generator = self.device.type not in ("cpu", "mps")  # one per device index
        kind = self.device.type if has_generator else "cuda"
        with torch.random.fork_rng([self.device.index or 0] if has_generator else [], device_type=kind):
            torch.manual_seed(settings.seed)
            for members in self._batches([len(prompt) for prompt in prompts], limits):
                batch = self._generate([prompts[index] for index in members], limits[members[0]], settings)
                for index, completion in zip(members, batch, strict=True):
                    completions[index] = completion
        return completions

    def _batches(self, lengths: Sequence[int], limits: Sequence[int]) -> Iterator[list[int]]:
        """Yield batches of prompt indices, longest first, of equal limits (and lengths, if padding is unsupported)."""

        def joins(members: list[int], index: int) -> bool:
            first = members[0]
            is_alike = self.has_plain_cache or lengths[index] == lengths[first]
            fits = (len(members) + 1) * (lengths[first] + limits[first]) <= CACHED_TOKENS
            return fits and is_alike and limits[index] == limits[first]

        return grouped(sorted(range(len(lengths)), key=lambda index: (limits[index], -lengths[index])), joins)

    @torch.inference_mode()
    def _generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, settings: SamplingParams
    ) -> list[list[int]]:
        how = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0}
        if settings.temperature > 0:
            how = {"do_sample": True, **{name: getattr(settings, name) for name in ("temperature", "top_k", "top_p")}}
        length, filler = max(map(len, prompts)), self.tokenizer.bos_id
        inputs = [[filler] * (length - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        rows = self.model.generate(
            input_ids=torch.tensor(inputs, device=self.device), attention_mask=torch.tensor(mask, device=self.device),
            max_new_tokens=max_new_tokens, pad_token_id=filler, eos_token_id=self.end_ids or None,
            repetition_penalty=1.0, **how,  # override the folder's own generation settings
        )[:, length:].tolist()  # fmt: skip
        ends = set(self.end_ids)
        return [list(takewhile(lambda token_id: token_id not in ends, row)) for row in rows]


def _has_plain_cache(model: Any) -> bool:
    """Return whether a cache has only keys and values per token, so that it can be shared and padded.

    Known only for models defined by the library itself.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    layers = DynamicCache(config=model.config).layers
    known = type(model).__module__.startswith("transformers.")
    return known and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


class HuggingFaceScorer(RowScorer):
    """Scores sequences with a Hugging Face model; reuses keys and values of shared prefixes if its cache allows it."""

    def __init__(self, model: HuggingFaceModel, tokens_per_pass: int | None = None) -> None:
        default = TOKENS_PER_PASS if model.device.type == "cpu" else None
        super().__init__(model.device, model.sequence_len, model.vocab_size, tokens_per_pass or default)
        self.causal = model
        self.shares = model.has_plain_cache
        has_new_name = "cache" in inspect.signature(model.model.forward).parameters
        self._cache_name = "cache" if has_new_name else "past_key_values"  # renamed in transformers 5.24

    def read(self, beginnings: Tensor, owners: Tensor, room: int) -> Any:  # noqa: ARG002 - this cache grows
        """Return the keys and values of the prefixes, one per sequence."""
        few = {"logits_to_keep": 1} if self.causal.keeps_logits else {}
        cache = getattr(self.causal.model(input_ids=beginnings, use_cache=True, **few), self._cache_name)
        cache.batch_select_indices(owners)
        return cache

    def states(self, inputs: Tensor, cache: Any, rows: Tensor, columns: Tensor) -> Tensor:
        """Return logits (K, V), since hidden states are model-specific."""
        options = {"use_cache": True, self._cache_name: cache} if cache is not None else {"use_cache": False}
        if not self.causal.keeps_logits:
            return self.causal.model(input_ids=inputs, **options).logits[rows, columns]
        kept, places = columns.unique(return_inverse=True)
        return self.causal.model(input_ids=inputs, logits_to_keep=kept, **options).logits[rows, places]

    def logits(self, states: Tensor) -> Tensor:
        """(K, V) float32."""
        return states.float()


def load_huggingface(
    folder: str | Path,
    device: str | torch.device | None = None,
    compute_dtype: str = "auto",
    trust_remote_code: bool = False,
) -> HuggingFaceModel:
    """Load a Hugging Face folder: config.json, safetensors weights and tokenizer files.

    `device` None is the fastest available one; `trust_remote_code` runs the Python files of the folder, with your
    permissions.
    """
    purpose = f"{folder} is a Hugging Face model; reading it"
    try:
        import transformers
    except ImportError:
        raise missing_package(purpose, "transformers", "hf") from None
    require_version(purpose, "transformers", "5.10", "hf")
    folder = Path(folder)
    if not list(folder.glob("*.safetensors")):
        raise UserError(
            f"{folder} has no safetensors weights; other formats (pytorch_model.bin) are pickles, which can execute code: "
            "convert them with transformers' save_pretrained"
        )
    device = find_device(device)
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    dtype = resolve_compute_dtype(compute_dtype, device)
    has_bar = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
        causal: Any = transformers.AutoModelForCausalLM
        model, loaded = causal.from_pretrained(
            folder, use_safetensors=True, dtype=dtype, output_loading_info=True, **options
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        code = " (it contains Python files; use --trust_remote_code true to run them)"
        hint = code if "trust_remote_code" in str(error) and not trust_remote_code else ""
        raise UserError(f"{folder} cannot be read{hint}: {' '.join(str(error).split())[:300]}") from None
    finally:
        if has_bar:
            transformers.utils.logging.enable_progress_bar()
    if loaded["missing_keys"]:  # the library initializes these randomly
        raise UserError(f"{folder} lacks the weights {', '.join(sorted(loaded['missing_keys'])[:3])}")
    return HuggingFaceModel(model.to(device).eval(), HuggingFaceTokenizer(tokenizer))
