"""A GGUF file holds the weights, the tokenizer and the metadata that llama.cpp reads; llama.cpp itself: test_other_engines.py."""

import subprocess
import sys

import numpy as np
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nanochat_lit import cli
from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.export import save_export
from nanochat_lit.engine.gguf_export import GGUFType, export_gguf
from nanochat_lit.engine.hf_tokenizer import PARTING_MARK
from nanochat_lit.model import GPT
from nanochat_lit.tokenizer import SPECIAL_TOKENS, Tokenizer
from nanochat_lit.tokenizer.tiktoken_bpe import TiktokenTokenizer

gguf = pytest.importorskip("gguf", reason="needs the gguf extra")

TOLERANCE = {"f32": 0.0, "f16": 1e-3, "bf16": 4e-3, "q8_0": 6e-3, "q4_0": 0.13}
"""Largest error of a weight, as a fraction of the largest weight of its matrix."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory, random_model, tokenizer):
    folder = tmp_path_factory.mktemp("gguf")
    model = random_model(architecture="qwen3", n_layer=3, n_head=4, n_kv_head=2, n_embd=64)
    save_export(folder / "export", model, tokenizer, {"temperature": 0.8}, {"stage": "sft"})
    return folder / "export", model


def read(folder):
    reader = gguf.GGUFReader(folder / "model.gguf")
    values = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {
        tensor.name: (tensor.tensor_type.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        for tensor in reader.tensors
    }
    return values, tensors


def expected_names(model: GPT):
    theirs = {
        "attn_norm": "attn_norm", "attn.c_q": "attn_q", "attn.c_k": "attn_k", "attn.c_v": "attn_v",
        "attn.c_proj": "attn_output", "attn.q_norm": "attn_q_norm", "attn.k_norm": "attn_k_norm", "mlp_norm": "ffn_norm",
        "mlp.c_gate": "ffn_gate", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
    }  # fmt: skip
    for name, weight in model.named_parameters():
        parts = name.removesuffix(".weight").split(".")
        if parts[:2] == ["transformer", "h"]:
            yield f"blk.{parts[2]}.{theirs['.'.join(parts[3:])]}.weight", weight
        else:
            yield {"wte": "token_embd", "norm": "output_norm", "lm_head": "output"}[parts[-1]] + ".weight", weight


@pytest.mark.parametrize("quantize", sorted(TOLERANCE))
def test_weights(exported, tmp_path, quantize: GGUFType):
    export, model = exported
    export_gguf(export, tmp_path / "out", quantize)
    _, tensors = read(tmp_path / "out")
    expected = dict(expected_names(model))
    assert tensors.keys() == expected.keys()
    for name, weight in expected.items():
        kind, found = tensors[name]
        large = quantize == "q4_0" and name in ("token_embd.weight", "output.weight")
        assert kind == ("F32" if weight.ndim == 1 else "Q8_0" if large else quantize.upper())
        error = np.abs(found.reshape(weight.shape) - weight.detach().numpy()).max()
        assert error <= (0 if weight.ndim == 1 else TOLERANCE[quantize] * float(weight.detach().abs().max())), name


def test_metadata(exported, tmp_path, tokenizer):
    export_gguf(exported[0], tmp_path / "my-model", "f16")
    values, _ = read(tmp_path / "my-model")
    assert values["general.architecture"] == "qwen3"
    assert values["general.name"] == "my-model"
    dimensions = {
        "context_length": 64, "embedding_length": 64, "block_count": 3, "feed_forward_length": 192, "vocab_size": 320,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 16, "attention.value_length": 16,
        "rope.dimension_count": 16, "rope.freq_base": 100000.0,
    }  # fmt: skip
    assert {name: values[f"qwen3.{name}"] for name in dimensions} == dimensions
    assert values["qwen3.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    own = {
        name.removeprefix("tokenizer.ggml."): value
        for name, value in values.items()
        if name.startswith("tokenizer.ggml")
    }
    assert (own["model"], own["add_bos_token"], own["add_space_prefix"]) == ("llama", True, False)
    assert own["bos_token_id"] == tokenizer.special_ids["<|bos|>"]
    assert own["eos_token_id"] == tokenizer.special_ids["<|assistant_end|>"]
    kinds = [gguf.TokenType(number).name for number in own["token_type"]]
    assert kinds == ["CONTROL"] * 9 + ["UNKNOWN"] + ["BYTE"] * 256 + ["NORMAL"] * (320 - 266)
    for index, (piece, kind) in enumerate(zip(own["tokens"], kinds, strict=True)):
        if kind == "NORMAL":
            assert piece.replace("\u2581", " ").encode() == tokenizer.bytes_of(index)
        elif kind == "BYTE":
            assert bytes([int(piece[3:5], 16)]) == tokenizer.bytes_of(index)
    assert tuple(own["tokens"][:9]) == SPECIAL_TOKENS
    merges = own["scores"][266:]
    assert merges == sorted(merges, reverse=True)


def test_the_chat_template(exported, tmp_path):
    """Plain Jinja, as llama.cpp reads it: without transformers' generation blocks."""
    export_gguf(exported[0], tmp_path / "out")
    template = ImmutableSandboxedEnvironment().from_string(read(tmp_path / "out")[0]["tokenizer.chat_template"])
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "3 <|bos|>?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "more"},
    ]
    assert template.render(messages=messages, add_generation_prompt=True) == (
        f"<|bos|><|user_start|>Be brief.\n\n3 <{PARTING_MARK}|bos|>?<|user_end|><|assistant_start|>4<|assistant_end|>"
        "<|user_start|>more<|user_end|><|assistant_start|>"
    )


def test_the_command_and_the_modelfile(exported, tmp_path, capsys):
    words = [
        "export",
        "--format",
        "gguf",
        "--quantize",
        "q8_0",
        "--model",
        str(exported[0]),
        "--out",
        str(tmp_path / "out"),
    ]
    assert cli.main(words) == 0
    assert "ollama create" in capsys.readouterr().out
    modelfile = (tmp_path / "out" / "Modelfile").read_text("utf-8")
    assert modelfile.startswith("FROM ./model.gguf\nTEMPLATE")
    for line in ("num_ctx 64", "temperature 0.8", "repeat_penalty 1.0", 'stop "<|assistant_end|>"'):
        assert f"PARAMETER {line}\n" in modelfile
    assert cli.main(words) == 0  # an older one is replaced


def test_a_tied_matrix_is_written_once(random_model, tokenizer, tmp_path):
    model = random_model(architecture="qwen3", tie_embeddings=True)
    save_export(tmp_path / "export", model, tokenizer, None, {"stage": "pretrain"})
    export_gguf(tmp_path / "export", tmp_path / "out", "f32")
    values, tensors = read(tmp_path / "out")
    assert "output.weight" not in tensors
    np.testing.assert_array_equal(tensors["token_embd.weight"][1], model.lm_head.weight.detach().numpy())
    assert "tokenizer.chat_template" not in values  # a base model does not chat
    assert 'TEMPLATE """{{ .Prompt }}"""' in (tmp_path / "out" / "Modelfile").read_text("utf-8")


def test_what_llama_cpp_cannot_run_is_refused(random_model, tokenizer, nanochat_encoding, tmp_path):
    save_export(tmp_path / "default", random_model(), tokenizer)
    with pytest.raises(UserError, match=r"the architecture nanochat.*model\.architecture qwen3, or use --format hf"):
        export_gguf(tmp_path / "default", tmp_path / "out")
    encoding = nanochat_encoding
    foreign = TiktokenTokenizer(encoding._pat_str, encoding._mergeable_ranks, encoding._special_tokens)
    save_export(tmp_path / "foreign", random_model(architecture="qwen3", vocab_size=foreign.vocab_size), foreign)
    with pytest.raises(UserError, match="tokenizer imported from nanochat"):
        export_gguf(tmp_path / "foreign", tmp_path / "out")
    no_space = Tokenizer.train(["今日は天気がいいですね。"] * 20, "auto")
    save_export(tmp_path / "no_space", random_model(architecture="qwen3", vocab_size=no_space.vocab_size), no_space)
    with pytest.raises(UserError, match="no token for a space"):
        export_gguf(tmp_path / "no_space", tmp_path / "out")
    save_export(tmp_path / "odd", random_model(architecture="qwen3", n_embd=48), tokenizer)
    with pytest.raises(UserError, match="rows of 48 weights, and q8_0 takes blocks of 32"):
        export_gguf(tmp_path / "odd", tmp_path / "out", "q8_0")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["gguf", "--quantize", "q2_k"],
            "--quantize: expected 'f32', 'f16', 'bf16', 'q8_0', 'q4_0' or null; given 'q2_k'",
        ),
        (["hf", "--quantize", "q8_0"], "--quantize q8_0 needs --format gguf; the format is hf"),
        (["gguf", "--dtype", "bfloat16"], "--dtype bfloat16 needs --format hf; the format is gguf"),
    ],
)
def test_options_that_do_not_fit(exported, tmp_path, capsys, words, message):
    command = ["export", "--model", str(exported[0]), "--out", str(tmp_path / "out"), "--format", *words]
    assert cli.main(command) == 2
    assert capsys.readouterr().err.splitlines()[0] == f"error: {message}"
    assert not (tmp_path / "out").exists()


def test_an_old_package_is_refused(exported, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda package: {"gguf": "0.9.1"}[package])
    words = ["export", "--format", "gguf", "--model", str(exported[0]), "--out", str(tmp_path / "out")]
    assert cli.main(words) == 2
    assert "--format gguf needs gguf 0.17 or newer, 0.9.1 is installed; pip install" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_missing_package_is_named(exported, tmp_path):
    code = (
        "import sys; sys.modules['gguf'] = None\n"
        "from nanochat_lit import cli\n"
        f"sys.exit(cli.main(['export', '--format', 'gguf', '--model', {str(exported[0])!r}, '--out', {str(tmp_path / 'out')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "needs gguf; pip install" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
