"""An export as a GGUF file, which llama.cpp and ollama run: weights, tokenizer, chat template, and an ollama Modelfile.

Only the architecture qwen3 has a form there. llama.cpp merges sentencepiece's pieces by their scores as sentencepiece does.
It reads a real U+2581 as a space; our tokenizer keeps it. Weights of one dimension stay in float32, as everywhere in GGUF.
"""

from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from nanochat_lit.common.errors import UserError, missing_package, require_version
from nanochat_lit.common.paths import atomic_write, whole_folder
from nanochat_lit.engine.export import load_export, load_generation_defaults, read_provenance
from nanochat_lit.engine.hf_tokenizer import chat_template
from nanochat_lit.engine.sampling_params import SamplingParams
from nanochat_lit.model import GPT
from nanochat_lit.model.config import QWEN3
from nanochat_lit.model.qwen3 import NORM_EPS, mlp_width
from nanochat_lit.model.rotary import ROTARY_BASE
from nanochat_lit.tokenizer import SPECIAL_TOKENS
from nanochat_lit.tokenizer.sentencepiece_bpe import SentencePieceTokenizer
from nanochat_lit.tokenizer.special_tokens import ASSISTANT_END, BOS
from nanochat_lit.tokenizer.training import FIRST_BYTE_ID, NUM_BYTES, UNK_ID

GGUF_FILE = "model.gguf"
MODELFILE = "Modelfile"

GGUFType: TypeAlias = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]

_OUTSIDE = {"transformer.wte": "token_embd", "norm": "output_norm", "lm_head": "output"}
_IN_LAYER = {
    "attn_norm": "attn_norm",
    "attn.c_q": "attn_q",
    "attn.c_k": "attn_k",
    "attn.c_v": "attn_v",
    "attn.c_proj": "attn_output",
    "attn.q_norm": "attn_q_norm",
    "attn.k_norm": "attn_k_norm",
    "mlp_norm": "ffn_norm",
    "mlp.c_gate": "ffn_gate",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_LARGE_TABLES = ("token_embd.weight", "output.weight")
"""In a q4_0 file these stay in q8_0: they are the most sensitive, and llama.cpp keeps them finer too."""


def export_gguf(export: str | Path, out: str | Path, quantize: GGUFType = "f16") -> None:
    """Write a folder with model.gguf and an ollama Modelfile; it appears whole or not at all.

    Args:
        export: What `save_export` wrote, of a model of the architecture qwen3.
        out: The new folder; an older one of the same kind is replaced.
        quantize: Type of the matrices.

    Raises:
        UserError: If the model has another architecture or another kind of tokenizer, or the gguf package is missing.
    """
    export, target = Path(export), Path(out).absolute()
    model, tokenizer = load_export(export, "cpu", "float32")
    if model.config.architecture != QWEN3:
        raise UserError(
            f"{export} has the architecture {model.config.architecture}, which GGUF programs do not know; they would need "
            f"code for it. Train with model.architecture {QWEN3}, or use --format hf"
        )
    if not isinstance(tokenizer, SentencePieceTokenizer):
        raise UserError(
            f"{export} has a tokenizer imported from nanochat, whose pattern of words llama.cpp does not have; "
            "train with a tokenizer of nanochat-lit"
        )
    is_chat = read_provenance(export).get("stage") != "pretrain"
    with whole_folder(target, {GGUF_FILE, MODELFILE}, "a GGUF folder") as folder:
        write_gguf(folder / GGUF_FILE, model, tokenizer, quantize, target.name, is_chat)
        with atomic_write(folder / MODELFILE, "w") as file:
            file.write(_modelfile(load_generation_defaults(export), model.config.sequence_len, is_chat))


def write_gguf(
    path: Path, model: GPT, tokenizer: SentencePieceTokenizer, quantize: GGUFType, name: str, is_chat: bool
) -> None:
    """Write one file, with the chat template if `is_chat`; raises UserError if the model does not fit the format."""
    try:
        import gguf
    except ModuleNotFoundError:
        raise missing_package("export --format gguf", "gguf", "gguf") from None
    require_version("export --format gguf", "gguf", "0.17", "gguf")
    writer = gguf.GGUFWriter(path, QWEN3)
    writer.add_name(name)
    file_types = {"f32": "ALL_F32", **{kind: f"MOSTLY_{kind.upper()}" for kind in ("f16", "bf16", "q8_0", "q4_0")}}
    writer.add_file_type(gguf.LlamaFileType[file_types[quantize]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    config = model.config
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.sequence_len)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(mlp_width(config))
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(config.n_kv_head)
    for add_width in (writer.add_key_length, writer.add_value_length, writer.add_rope_dimension_count):
        add_width(config.head_dim)
    writer.add_rope_freq_base(ROTARY_BASE)
    writer.add_layer_norm_rms_eps(NORM_EPS)
    _add_tokenizer(writer, tokenizer, is_chat)
    for key, tensor in _tensors(model).items():
        kind = "f32" if tensor.ndim == 1 else "q8_0" if quantize == "q4_0" and key in _LARGE_TABLES else quantize
        raw = gguf.GGMLQuantizationType[kind.upper()]
        if tensor.shape[-1] % gguf.GGML_QUANT_SIZES[raw][0]:
            raise UserError(
                f"{key} has rows of {tensor.shape[-1]} weights, and {kind} takes blocks of "
                f"{gguf.GGML_QUANT_SIZES[raw][0]}; use --quantize f16"
            )
        writer.add_tensor(key, gguf.quants.quantize(tensor.float().numpy(), raw), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(model: GPT) -> dict[str, torch.Tensor]:
    """The weights by llama.cpp's names; a tied matrix is its embedding."""
    names = _OUTSIDE.copy()
    for layer in range(model.config.n_layer):
        names |= {f"transformer.h.{layer}.{ours}": f"blk.{layer}.{theirs}" for ours, theirs in _IN_LAYER.items()}
    if model.config.tie_embeddings:
        names["lm_head"] = names.pop("transformer.wte")
    weights = model.state_dict()
    return {f"{theirs}.weight": weights[f"{ours}.weight"].detach() for ours, theirs in names.items()}


def _add_tokenizer(writer: Any, tokenizer: SentencePieceTokenizer, is_chat: bool) -> None:
    from gguf import TokenType

    pieces, scores = tokenizer.pieces_and_scores()
    if len(set(pieces)) != len(pieces) or "\u2581" not in pieces:
        raise UserError(
            "this tokenizer has no token for a space, or two tokens of one name; llama.cpp cannot read it. "
            "Train one on text with spaces"
        )
    types = [TokenType.CONTROL] * len(SPECIAL_TOKENS) + [TokenType.NORMAL] * (len(pieces) - len(SPECIAL_TOKENS))
    types[UNK_ID] = TokenType.UNKNOWN
    types[FIRST_BYTE_ID : FIRST_BYTE_ID + NUM_BYTES] = [TokenType.BYTE] * NUM_BYTES
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(pieces)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    ids = tokenizer.special_ids
    writer.add_bos_token_id(ids[BOS])
    writer.add_eos_token_id(ids[ASSISTANT_END])
    writer.add_eot_token_id(ids[BOS])  # a base model ends its document with the next bos
    writer.add_unk_token_id(UNK_ID)
    writer.add_pad_token_id(ids[BOS])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_remove_extra_whitespaces(False)
    if is_chat:
        writer.add_chat_template(gguf_chat_template())


def gguf_chat_template() -> str:
    """The chat template without the blocks that only transformers knows."""
    return chat_template().replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")


def _modelfile(defaults: SamplingParams, context: int, is_chat: bool) -> str:
    """An ollama Modelfile: `ollama create NAME -f Modelfile`. ollama's own defaults of sampling are switched off."""
    settings = {
        "num_ctx": context,
        "num_predict": defaults.max_new_tokens,
        "temperature": defaults.temperature,
        "top_k": defaults.top_k,
        "top_p": defaults.top_p,
        "min_p": 0.0,
        "repeat_penalty": 1.0,
        "stop": f'"{ASSISTANT_END}"',
    }
    chat = (Path(__file__).parent / "ollama_template.txt").read_text("utf-8")  # ollama puts the first token before it
    template = chat if is_chat else "{{ .Prompt }}"
    lines = [f"FROM ./{GGUF_FILE}", f'TEMPLATE """{template}"""']
    lines += [f"PARAMETER {name} {value}" for name, value in settings.items()]
    return "\n".join(lines) + "\n"
