"""Weights that nanochat saved give nanochat's logits; what is missing is neutral, what differs is refused."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.nanochat_checkpoint import load_nanochat_checkpoint
from nanochat_lit.model import GPT, GPTConfig

SCALARS = ["resid_lambdas", "x0_lambdas", "smear_gate.weight", "smear_lambda", "backout_lambda"]


@pytest.mark.parametrize("case", ["tiny", "gqa"])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_logits_are_those_of_nanochat(reference, tmp_path, case, prefix):
    folder = reference / "nanochat" / case
    weights = {prefix + name: tensor for name, tensor in load_file(folder / "weights.safetensors").items()}
    torch.save(weights, tmp_path / "model_000100.pt")
    meta = {"model_config": json.loads((folder / "config.json").read_text())}
    (tmp_path / "meta_000100.json").write_text(json.dumps(meta))
    checkpoint = load_nanochat_checkpoint(tmp_path)
    expected = load_file(folder / "forward.safetensors")
    model = checkpoint.model.set_compute_dtype(torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(model(expected["inputs"]), expected["logits"], atol=1e-4, rtol=0)
    assert (checkpoint.step, len(checkpoint.notes)) == (100, int(bool(prefix)))


def test_the_newest_step_or_the_one_asked_for(nanochat_folder, random_model):
    folder = nanochat_folder(random_model(seed=1), step=90)
    nanochat_folder(random_model(seed=2), step=1000, folder=folder)
    (folder / "model_000200_backup.pt").write_bytes(b"not this one")
    assert load_nanochat_checkpoint(folder).step == 1000
    old = load_nanochat_checkpoint(folder, step=90)
    assert torch.equal(old.model.lm_head.weight, random_model(seed=1).lm_head.weight)
    with pytest.raises(UserError, match="no step 5; it has 90, 1000"):
        load_nanochat_checkpoint(folder, step=5)


def test_what_an_older_file_lacks_changes_nothing(nanochat_folder, random_model):
    neutral = random_model(window_pattern="L")
    with torch.no_grad():
        neutral.resid_lambdas.fill_(1)
        for name in SCALARS[1:]:
            neutral.get_parameter(name).zero_()
    checkpoint = load_nanochat_checkpoint(nanochat_folder(neutral, drop=[*SCALARS, "window_pattern"]))
    inputs = torch.randint(0, 320, (2, 40))
    with torch.no_grad():
        assert torch.equal(checkpoint.model.set_compute_dtype(torch.float32)(inputs), neutral(inputs))
    for name in ["window_pattern", *SCALARS]:
        assert sum(note.startswith(f"{name} is missing") for note in checkpoint.notes) == 1
    assert "the constants it was trained with" in checkpoint.notes[-1]


def test_tables_are_padded_and_matrices_widened(nanochat_folder, random_model):
    model = random_model(vocab_size=300)
    folder = nanochat_folder(model)
    weights = torch.load(folder / "model_000007.pt", weights_only=True)
    tables = ["transformer.wte.weight", "lm_head.weight", "value_embeds.1.weight"]
    weights = {name: tensor[:300] if name in tables else tensor.bfloat16() for name, tensor in weights.items()}
    weights["transformer.wte.weight"] = weights["transformer.wte.weight"].bfloat16()
    torch.save(weights, folder / "model_000007.pt")
    checkpoint = load_nanochat_checkpoint(folder)
    state = checkpoint.model.state_dict()
    assert state["transformer.wte.weight"].dtype == torch.bfloat16  # tables stay as stored
    assert {state[name].shape[0] for name in tables} == {320}
    assert state["transformer.h.0.attn.c_q.weight"].dtype == torch.float32
    text = " ".join(checkpoint.notes)
    assert "3 embeddings of 300 rows are padded to 320" in text
    assert "widened to float32" in text


def test_provenance_is_plain_json_and_knows_the_rates(nanochat_folder, random_model):
    provenance = load_nanochat_checkpoint(nanochat_folder(random_model())).provenance
    json.dumps(provenance, allow_nan=False)
    assert provenance["val_bpb"] == 1.25
    assert provenance["hyper_parameters"] == {"embedding_lr": 0.2, "matrix_lr": 0.02, "tokens_per_step": 4096}


def _change(folder: Path, **tensors: object) -> None:
    weights = torch.load(folder / "model_000007.pt", weights_only=True)
    for name, tensor in tensors.items():
        weights.pop(name, None)
        if tensor is not None:
            weights[name] = tensor
    torch.save(weights, folder / "model_000007.pt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"value_embeds.1.weight": None, "transformer.h.1.attn.ve_gate.weight": None},
            "between those of 2025 and 2026",
        ),
        ({"transformer.h.1.attn.ve_gate.weight": torch.zeros(2, 32)}, "gates of 32 channels, this model of 12"),
        ({"value_embeds.0.weight": torch.zeros(320, 32)}, "in layers 0, 1, this model in 1"),
        ({"bigram_embed.weight": torch.zeros(5, 5)}, "1 tensors differ, first bigram_embed.weight"),
        ({"lm_head.weight": torch.zeros(7, 32)}, r"first lm_head.weight: \(7, 32\), not \(320, 32\)"),
        ({"transformer.h.0.attn.c_q.weight": None}, "c_q.weight: absent"),
        ({"_orig_mod.lm_head.weight": torch.zeros(320, 32)}, "both with and without the prefix"),
        ({"lm_head.weight": torch.zeros(320, 32, dtype=torch.int64)}, "does not hold the weights"),
        ({"lm_head.weight": "text"}, "does not hold the weights"),
    ],
)
def test_what_cannot_be_represented_is_refused(nanochat_folder, random_model, changes, message):
    folder = nanochat_folder(random_model())
    _change(folder, **changes)
    with pytest.raises(UserError, match=message):
        load_nanochat_checkpoint(folder)


def test_fields_of_our_own_are_not_of_nanochat(nanochat_folder, random_model):
    with pytest.raises(UserError, match="dimensions bigram_factor, which this model does not support"):
        load_nanochat_checkpoint(nanochat_folder(random_model(bigram_factor=3)))


def test_hostile_and_damaged_weights_are_refused(nanochat_folder, random_model, tmp_path):
    folder = nanochat_folder(random_model())
    path = folder / "model_000007.pt"

    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    torch.save({"lm_head.weight": Evil()}, path)
    with pytest.raises(UserError, match="cannot be read as tensors"):
        load_nanochat_checkpoint(folder)
    path.write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(UserError, match="cannot be read as tensors"):
        load_nanochat_checkpoint(folder)
    assert not (tmp_path / "executed").exists()
    nanochat_folder(random_model(), folder=folder)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="cannot be read as tensors"):
        load_nanochat_checkpoint(folder)


def test_wrong_folders_and_meta_files(nanochat_folder, random_model):
    folder = nanochat_folder(random_model())
    with pytest.raises(UserError, match="nowhere does not exist"):
        load_nanochat_checkpoint(folder / "nowhere")
    with pytest.raises(UserError, match=f"checkpoints in {folder.name}: give one of these"):
        load_nanochat_checkpoint(
            folder.parent / "." if len(list(folder.parent.glob("*/model_*.pt"))) == 1 else _only(folder)
        )
    meta = folder / "meta_000007.json"
    fields = json.loads(meta.read_text())
    for config, message in (
        ({**fields["model_config"], "n_loop": 2}, "dimensions n_loop"),
        ({"n_layer": 2}, "lacks n_embd"),
        (None, "no model_config"),
        ({**fields["model_config"], "n_head": 3}, "not divisible"),
    ):
        meta.write_text(json.dumps({"model_config": config}))
        with pytest.raises(UserError, match=message):
            load_nanochat_checkpoint(folder)
    meta.unlink()
    with pytest.raises(UserError, match="no such file"):
        load_nanochat_checkpoint(folder)


def _only(folder: Path) -> Path:
    """A folder above this one that holds no other."""
    (folder.parent / f"only_{folder.name}").mkdir()
    (folder.parent / f"only_{folder.name}" / folder.name).symlink_to(folder)
    return folder.parent / f"only_{folder.name}"


def test_our_config_is_nanochats():
    assert GPT(GPTConfig(n_layer=1, n_embd=64, n_head=2, n_kv_head=2, vocab_size=64)).value_embeds.keys() == {"0"}
