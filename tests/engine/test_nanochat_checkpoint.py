"""Weights that nanochat saved give nanochat's logits; what is missing is neutral, what differs is refused."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.export_folder import save_export
from nanochat_lit.engine.hf_export import export_hf
from nanochat_lit.engine.hf_import import import_hf
from nanochat_lit.engine.nanochat import load_nanochat_checkpoint
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


def early_2026_logits(weights, config, ids):
    """nanochat between January 16 and March 9, 2026, written down from its description, one position and head at a time."""
    heads, groups, size = config["n_head"], config["n_kv_head"], config["n_embd"] // config["n_head"]
    half = size // 2

    def rms(x):
        return x / (x.pow(2).mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()

    def turned(x, position):
        angles = position / 10_000 ** (torch.arange(half) / half)
        first, second = x[:half], x[half:]
        return torch.cat((first * angles.cos() + second * angles.sin(), second * angles.cos() - first * angles.sin()))

    start = rms(weights["transformer.wte.weight"][ids])
    x, pattern = start, config["window_pattern"]
    for layer in range(config["n_layer"]):
        part = {name.split(".", 3)[3]: value for name, value in weights.items() if f".h.{layer}." in name}
        x = weights["resid_lambdas"][layer] * x + weights["x0_lambdas"][layer] * start
        is_short = pattern[layer % len(pattern)] == "S" and layer < config["n_layer"] - 1
        reach = config["sequence_len"] // 2 if is_short else config["sequence_len"]
        inner = rms(x)
        values = (inner @ part["attn.c_v.weight"].T).view(len(ids), groups, size)
        if "attn.ve_gate.weight" in part:
            opening = 2 / (1 + (-(inner[:, :32] @ part["attn.ve_gate.weight"].T)).exp())
            added = weights[f"value_embeds.{layer}.weight"][ids].view(len(ids), groups, size)
            values = values + opening[..., None] * added
        mixed = torch.zeros(len(ids), heads, size)
        for head in range(heads):
            group = head * groups // heads
            rows = [slice(index * size, (index + 1) * size) for index in (head, group)]
            queries = [rms(turned(part["attn.c_q.weight"][rows[0]] @ inner[t], t)) for t in range(len(ids))]
            keys = [rms(turned(part["attn.c_k.weight"][rows[1]] @ inner[t], t)) for t in range(len(ids))]
            for t in range(len(ids)):
                seen = range(max(0, t - reach), t + 1)
                scores = torch.stack([queries[t] @ keys[s] / size**0.5 for s in seen]).softmax(0)
                mixed[t, head] = sum(score * values[s, group] for score, s in zip(scores, seen, strict=True))
        x = x + mixed.flatten(1) @ part["attn.c_proj.weight"].T
        x = x + (rms(x) @ part["mlp.c_fc.weight"].T).clamp(min=0) ** 2 @ part["mlp.c_proj.weight"].T
    raw = (rms(x) @ weights["lm_head.weight"].T)[:, : config["vocab_size"]]
    return 15 * (raw / 15).tanh()


LATER = ["smear_gate.weight", "smear_lambda", "backout_lambda", "architecture"]


SHAPE_2026 = {"n_layer": 3, "n_embd": 64, "n_head": 4, "n_kv_head": 2, "sequence_len": 16, "window_pattern": "SSL"}


def test_logits_of_early_2026(nanochat_folder, random_model):
    folder = nanochat_folder(random_model(architecture="nanochat2026", vocab_size=300, **SHAPE_2026), drop=LATER)
    weights = torch.load(folder / "model_000007.pt", weights_only=True)
    assert weights["transformer.h.0.attn.ve_gate.weight"].shape == (2, 32)
    config = json.loads((folder / "meta_000007.json").read_text())["model_config"]
    assert "architecture" not in config
    checkpoint = load_nanochat_checkpoint(folder)
    assert checkpoint.model.config.architecture == "nanochat2026"
    assert any(note.startswith("gates of 32 channels: the architecture of early 2026") for note in checkpoint.notes)
    ids = torch.randint(0, 300, (16,))
    with torch.no_grad():
        found = checkpoint.model.set_compute_dtype(torch.float32)(ids[None])[0]
    torch.testing.assert_close(found, early_2026_logits(weights, config, ids), atol=1e-4, rtol=0)


def test_early_2026_in_transformers_and_back(random_model, tokenizer, tmp_path):
    """The code of the folder computes the same, with its own constants."""
    transformers = pytest.importorskip("transformers")
    model = random_model(architecture="nanochat2026", **SHAPE_2026)
    save_export(tmp_path / "export", model, tokenizer)
    export_hf(tmp_path / "export", tmp_path / "hf")
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", trust_remote_code=True).eval()
    ids = torch.randint(0, 320, (2, 16))
    with torch.no_grad():
        torch.testing.assert_close(other(ids).logits, model(ids), atol=1e-4, rtol=0)
        texts = [other.generate(row[None, :4], max_new_tokens=8, do_sample=False, eos_token_id=None) for row in ids]
    for row, text in zip(ids, texts, strict=True):
        ours = row[:4].tolist()
        while len(ours) < 12:
            ours.append(int(model(torch.tensor([ours]))[0, -1].argmax()))
        assert text[0].tolist() == ours
    import_hf(tmp_path / "hf", tmp_path / "back")
    assert (tmp_path / "back" / "config.json").read_text() == (tmp_path / "export" / "config.json").read_text()
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (
        tmp_path / "export" / "model.safetensors"
    ).read_bytes()
