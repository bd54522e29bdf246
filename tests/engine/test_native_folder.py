"""Some architectures are transformers' own: their folders load without code of ours, and are read back bit for bit."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from nanochat_lit import cli
from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.engine import Engine
from nanochat_lit.engine.export import load_export, save_export
from nanochat_lit.engine.hf_export import export_hf
from nanochat_lit.engine.hf_import import import_hf
from nanochat_lit.engine.hf_tokenizer import write_hf_tokenizer
from nanochat_lit.engine.nanochat import load_nanochat_checkpoint
from nanochat_lit.tokenizer import render_for_completion
from nanochat_lit.tokenizer.tiktoken_bpe import TiktokenTokenizer

transformers = pytest.importorskip("transformers", reason="needs the hf extra")

SHAPES = {
    "gqa": {"architecture": "qwen3", "n_layer": 3, "n_head": 4, "n_kv_head": 2, "n_embd": 64},
    "tied": {"architecture": "qwen3", "n_layer": 2, "tie_embeddings": True},
    "nanochat2025": {"architecture": "nanochat2025", "n_layer": 3, "n_head": 4, "n_kv_head": 2, "n_embd": 64},
}
CLASSES = {"qwen3": "Qwen3ForCausalLM", "nanochat2025": "NanoChatForCausalLM"}


@pytest.fixture(scope="module", params=sorted(SHAPES))
def pair(request, tmp_path_factory, random_model, tokenizer):
    """An export and the folder made of it."""
    folder = tmp_path_factory.mktemp("native")
    model = random_model(vocab_size=tokenizer.vocab_size, **SHAPES[request.param])
    save_export(folder / "export", model, tokenizer, {"temperature": 0.8}, {"stage": "sft"})
    assert cli.main(["export", "--model", str(folder / "export"), "--out", str(folder / "hf")]) == 0
    return folder / "export", folder / "hf"


def test_it_loads_without_code_of_ours(pair, capsys):
    export, folder = pair
    assert not list(folder.glob("*.py"))
    ours, tokenizer = load_export(export, "cpu", "float32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False).eval()
    assert type(theirs).__name__ == CLASSES[ours.config.architecture]
    inputs = torch.randint(0, ours.config.vocab_size, (2, 64))
    with torch.no_grad():
        torch.testing.assert_close(theirs(inputs).logits, ours(inputs), atol=1e-4, rtol=0)
    prompt = [0, 7, 300, 41]
    (expected,) = Engine(ours, tokenizer).generate(prompt, max_new_tokens=30, temperature=0)
    options = {"do_sample": False, "max_new_tokens": len(expected), "attention_mask": torch.ones(1, 4)}
    assert theirs.generate(torch.tensor([prompt]), **options)[0, 4:].tolist() == expected


def test_the_tokenizer_loads_without_code_of_ours(pair):
    export, folder = pair
    ours = load_export(export, "cpu", "float32")[1]
    theirs = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    text = "hello  naïve\n日本語 🙂"
    assert theirs(text).input_ids == ours.encode(text, prepend_bos=True)
    messages = [{"role": "user", "content": "3 times 4? <|bos|>"}]
    found = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert found == render_for_completion(ours, {"messages": messages})


def test_the_way_back_loses_nothing(pair, tmp_path):
    export, folder = pair
    import_hf(folder, tmp_path / "export")
    assert {path.name for path in (tmp_path / "export").iterdir()} == {path.name for path in export.iterdir()}
    for path in export.iterdir():
        assert path.read_bytes() == (tmp_path / "export" / path.name).read_bytes(), path.name


def test_the_way_back_from_transformers(pair, tmp_path):
    """transformers rewrites the config, and a tied matrix under the name it prefers."""
    export, folder = pair
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        theirs.model.layers[0].self_attn.v_proj.weight.mul_(2)
    theirs.save_pretrained(tmp_path / "trained")
    import_hf(tmp_path / "trained", tmp_path / "export", tokenizer=export)
    before, after = (load_file(path / "model.safetensors") for path in (export, tmp_path / "export"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(
            after[name], tensor * 2 if name == "transformer.h.0.attn.c_v.weight" else tensor, rtol=0, atol=0
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"intermediate_size": 100}, "intermediate_size 100; only"),
        ({"rope_theta": 1e6}, "rope_theta 1000000.0; only 1"),
        ({"attention_bias": True}, "attention_bias True; only False"),
        ({"num_hidden_layers": 9}, "tensors differ"),
        ({"hidden_size": None}, "lacks 'hidden_size'"),
    ],
)
def test_what_cannot_be_represented_is_refused(pair, tmp_path, change, message):
    _, folder = pair
    fields = json.loads((folder / "config.json").read_text()) | change
    fields = {name: value for name, value in fields.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(UserError, match=re.escape(message)):
        import_hf(tmp_path, tmp_path / "export", tokenizer=folder / "nanochat_lit")


def test_half_of_the_size(pair):
    export, folder = pair
    export_hf(export, folder.with_name("half"), "bfloat16")
    ours, _ = load_export(export, "cpu", "bfloat16")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder.with_name("half")).eval()
    assert theirs.dtype == torch.bfloat16
    inputs = torch.randint(0, 300, (1, 60))
    with torch.no_grad():
        torch.testing.assert_close(theirs(inputs).logits.float(), ours(inputs), atol=0.25, rtol=0)


def test_the_card_does_not_ask_for_trust(pair):
    card = (pair[1] / "README.md").read_text("utf-8")
    assert "trust_remote_code" not in card
    assert "AutoModelForCausalLM.from_pretrained" in card
    is_qwen3 = "Qwen3ForCausalLM" in card
    assert ("softcap" in card) != is_qwen3
    assert is_qwen3 or "NanoChatForCausalLM" in card


def test_a_published_nanochat_folder(random_model, nanochat_encoding, tmp_path):
    """It has transformers' config and tokenizer, and nothing of ours."""
    encoding = nanochat_encoding
    tokenizer = TiktokenTokenizer(encoding._pat_str, encoding._mergeable_ranks, encoding._special_tokens)
    dimensions = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    theirs = transformers.NanoChatForCausalLM(
        transformers.NanoChatConfig(vocab_size=tokenizer.vocab_size, max_position_embeddings=64, **dimensions)
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.3)
    theirs.save_pretrained(tmp_path / "hf")
    write_hf_tokenizer(tmp_path / "hf", tokenizer, 64)
    import_hf(tmp_path / "hf", tmp_path / "export")
    ours, found = load_export(tmp_path / "export", "cpu", "float32")
    assert found.fingerprint == tokenizer.fingerprint
    ids = torch.randint(0, tokenizer.vocab_size, (2, 64))
    with torch.no_grad():
        expected = theirs(ids).logits
        torch.testing.assert_close(ours(ids), expected, atol=1e-4, rtol=0)
        assert expected.std() > 0.3


def test_a_nanochat_checkpoint_of_2025(random_model, nanochat_folder):
    """Its file has the embedding, the layers and the unembedding alone."""
    model = random_model(architecture="nanochat2025", n_layer=2)
    folder = nanochat_folder(model, drop=["architecture", "window_pattern"])
    checkpoint = load_nanochat_checkpoint(folder)
    assert checkpoint.model.config == model.config
    assert any("the architecture of 2025" in note for note in checkpoint.notes)
    ids = torch.randint(0, 320, (1, 40))
    with torch.no_grad():
        assert torch.equal(checkpoint.model.set_compute_dtype(torch.float32)(ids), model(ids))
