"""What transformers loads from an exported folder is the same model and the same tokenizer."""

import itertools
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.engine import Engine
from nanochat_lit.engine.export import load_export, save_export
from nanochat_lit.engine.hf_code import CODE_FILES
from nanochat_lit.engine.hf_export import export_hf
from nanochat_lit.engine.hf_import import HF_FILES, import_hf
from nanochat_lit.tokenizer import SPECIAL_TOKENS, render_for_completion

transformers = pytest.importorskip("transformers", reason="needs the hf extra")

SHAPES = {
    "plain": {"n_layer": 3, "sequence_len": 256},
    "gqa": {"n_layer": 4, "n_head": 4, "n_kv_head": 2, "n_embd": 64, "sequence_len": 512, "window_pattern": "SSSL"},
    "pairs": {"n_layer": 3, "sequence_len": 256, "bigram_factor": 3},
}


@pytest.fixture(scope="module")
def make_export(tmp_path_factory, random_model, tokenizer):
    def make(stage="sft", **fields):
        folder = tmp_path_factory.mktemp("hf") / "export"
        model = random_model(**{"vocab_size": tokenizer.vocab_size, **fields})
        save_export(folder, model, tokenizer, {"temperature": 0.8}, {"stage": stage, "val_bpb": 1.5})
        return folder

    return make


@pytest.fixture(scope="module", params=sorted(SHAPES))
def pair(request, make_export):
    """An export and the folder made of it."""
    export = make_export(**SHAPES[request.param])
    export_hf(export, export.parent / "hf")
    return export, export.parent / "hf"


def load(folder, **options):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options).eval()


def cache_of(output):
    return output["cache" if "cache" in output else "past_key_values"]  # renamed in transformers 5.24


def test_logits_are_equal(pair):
    export, folder = pair
    ours, _ = load_export(export, "cpu", "float32")
    theirs = load(folder)
    inputs = torch.randint(0, ours.config.vocab_size, (2, ours.config.sequence_len))
    with torch.no_grad():
        expected = ours(inputs)
        for implementation in ("sdpa", "eager"):
            theirs.set_attn_implementation(implementation)
            assert theirs.model.config._attn_implementation == implementation
            torch.testing.assert_close(theirs(inputs).logits, expected, atol=1e-4, rtol=0)
        pieces = [theirs(inputs[:, :50])]
        for start, end in ((50, 51), (51, 52), (52, 256)):
            pieces.append(theirs(inputs[:, start:end], past_key_values=cache_of(pieces[0])))
    torch.testing.assert_close(torch.cat([p.logits for p in pieces], dim=1), expected[:, :256], atol=1e-4, rtol=0)
    labels = inputs.clone()
    labels[:, :9] = -100
    targets = torch.where(labels[:, 1:] == -100, -1, labels[:, 1:])
    torch.testing.assert_close(theirs(inputs, labels=labels).loss, ours(inputs[:, :-1], targets), atol=1e-4, rtol=0)
    assert theirs(inputs, logits_to_keep=1).logits.shape == (2, 1, ours.config.vocab_size)


def test_the_smear_is_noticed(pair):
    """The comparison would fail if a decoding step forgot the token before it."""
    theirs = load(pair[1])
    inputs = torch.randint(0, 300, (1, 40))
    with torch.no_grad():
        first = theirs(inputs[:, :30])
        with_it = theirs(inputs[:, 30:31], past_key_values=cache_of(first)).logits
        again = theirs(inputs[:, :30])
        theirs.model.previous_token.forward = lambda ids, *_, **__: ids
        without = theirs(inputs[:, 30:31], past_key_values=cache_of(again)).logits
    assert (with_it - without).abs().max() > 1e-2


def test_in_bfloat16(pair):
    export, folder = pair
    ours, _ = load_export(export, "cpu", "bfloat16")
    export_hf(export, folder.with_name("half"), "bfloat16")
    theirs = load(folder.with_name("half"))
    assert theirs.dtype == torch.bfloat16
    assert theirs.model.network.resid_lambdas.dtype == torch.float32
    inputs = torch.randint(0, 300, (1, 200))
    with torch.no_grad():
        torch.testing.assert_close(theirs(inputs).logits, ours(inputs), atol=0.25, rtol=0)
        seen = []
        inner = theirs.model.previous_token.forward
        theirs.model.previous_token.forward = lambda *args, **options: seen.append(inner(*args, **options)) or seen[-1]
        theirs(inputs)
    assert torch.equal(seen[0][:, 1:], inputs[:, :-1])  # ids survive the rounding
    options = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": [10**6], "disable_compile": True}
    static = theirs.generate(inputs[:, :20], cache_implementation="static", **options)
    assert static.shape == (1, 28)


def test_generate_is_our_greedy_engine(pair):
    export, folder = pair
    ours, tokenizer = load_export(export, "cpu", "float32")
    theirs = load(folder)
    prompts = [[0, 7, 300, 41], [0, *range(270, 300)], [0]]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    options = {"do_sample": False, "max_new_tokens": 40}
    together = theirs.generate(ids, attention_mask=mask, **options)[:, width:].tolist()
    # our engine ends at these, or goes on with what its calculator says
    ends = {*theirs.generation_config.eos_token_id, tokenizer.special_ids["<|python_end|>"]}
    for prompt, row in zip(prompts, together, strict=True):
        (expected,) = Engine(ours, tokenizer).generate(prompt, max_new_tokens=40, temperature=0)
        assert _until(row, ends) == _until(expected, ends)
        alone = theirs.generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist()
        assert row[: len(alone)] == alone


def _until(token_ids, ends):
    return list(itertools.takewhile(lambda token_id: token_id not in ends, token_ids))


def test_every_cache_gives_the_same_tokens(pair):
    theirs = load(pair[1])
    prompt = torch.tensor([[0, 5, 301, 302, 17]])
    options = {"do_sample": False, "max_new_tokens": 24, "eos_token_id": [10**6]}
    plain = theirs.generate(prompt, use_cache=False, **options)
    for extra in ({}, {"cache_implementation": "static", "disable_compile": True}, {"prompt_lookup_num_tokens": 4}):
        assert torch.equal(theirs.generate(prompt, **options, **extra), plain), extra
    beams = {**options, "num_beams": 3}
    assert torch.equal(theirs.generate(prompt, **beams), theirs.generate(prompt, use_cache=False, **beams))


def test_tokens_can_be_added(pair, tmp_path):
    theirs, tokenizer = load(pair[1]), transformers.AutoTokenizer.from_pretrained(pair[1])
    inputs = tokenizer("a b c", return_tensors="pt")
    with torch.no_grad():
        before = theirs(**inputs).logits
    for number in range(70):  # also beyond the rows that the tables have as padding
        tokenizer.add_tokens(f"<extra{number}>")
    theirs.resize_token_embeddings(len(tokenizer))
    with torch.no_grad():
        added = theirs(**tokenizer("a <extra69> b", return_tensors="pt"))
        after = theirs(**inputs).logits
    assert added.logits.shape[-1] == len(tokenizer) == before.shape[-1] + 70
    assert added.logits.isfinite().all()
    assert torch.equal(after[..., : before.shape[-1]], before)
    theirs.save_pretrained(tmp_path)
    for name in CODE_FILES:
        (tmp_path / name).write_bytes((pair[1] / name).read_bytes())
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path)(**inputs).logits, after)


def test_impossible_inputs_are_refused(pair):
    with pytest.raises(ValueError, match="give input_ids"):
        load(pair[1])(inputs_embeds=torch.zeros(1, 3, 32))


def test_the_way_back_loses_nothing(pair, tmp_path):
    export, folder = pair
    import_hf(folder, tmp_path / "export")
    assert {path.name for path in (tmp_path / "export").iterdir()} == {path.name for path in export.iterdir()}
    for path in export.iterdir():
        again = tmp_path / "export" / path.name
        if path.suffix == ".safetensors":
            before, after = load_file(path), load_file(again)
            assert before.keys() == after.keys()
            assert all(
                torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before
            )
        else:
            assert path.read_bytes() == again.read_bytes(), path.name


def test_the_way_back_after_training_in_transformers(pair, tmp_path):
    export, folder = pair
    theirs = load(folder).train()
    checkpointing = "activation_checkpointing_enable"  # its name since 5.20
    getattr(theirs, checkpointing if hasattr(theirs, checkpointing) else "gradient_checkpointing_enable")()
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    inputs = torch.randint(0, 300, (2, 60))
    losses = []
    for _ in range(4):
        loss = theirs(inputs, labels=inputs).loss
        loss.backward()
        assert all(parameter.grad is not None for parameter in theirs.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    theirs.save_pretrained(tmp_path / "trained", max_shard_size="100KB")
    assert (tmp_path / "trained" / "model.safetensors.index.json").is_file()
    with pytest.raises(UserError, match="set --tokenizer to the original export"):
        import_hf(tmp_path / "trained", tmp_path / "export")
    import_hf(tmp_path / "trained", tmp_path / "export", tokenizer=export)
    ours, _ = load_export(tmp_path / "export", "cpu", "float32")
    with torch.no_grad():
        torch.testing.assert_close(ours(inputs), theirs.eval()(inputs).logits, atol=1e-4, rtol=0)


def test_foreign_and_broken_folders_are_refused(pair, tmp_path):
    _, folder = pair
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    fields = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"model_type": "llama"}, "model type 'llama'"),
        ({"qk_scale": 1.0}, r"qk_scale 1\.0, this model 1\.2"),
        ({"short_window": 64}, "short_window 64"),
        ({"n_layer": 5}, "tensors differ"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**fields, **change}))
        with pytest.raises(UserError, match=message):
            import_hf(tmp_path, tmp_path / "export", tokenizer=folder / "nanochat_lit")
    del fields["window_pattern"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match="lacks 'window_pattern'"):
        import_hf(tmp_path, tmp_path / "export", tokenizer=folder / "nanochat_lit")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="damaged or cut off"):
        import_hf(tmp_path, tmp_path / "export", tokenizer=folder / "nanochat_lit")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="is missing"):
        import_hf(tmp_path, tmp_path / "export", tokenizer=folder / "nanochat_lit")


def test_only_what_it_knows_is_replaced(pair, tmp_path):
    export, folder = pair
    assert {path.name for path in folder.iterdir()} == HF_FILES
    export_hf(export, folder)
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match=r"thesis\.txt"):
        export_hf(export, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_the_program_of_the_page(pair):
    export, folder = pair
    page = (Path(__file__).resolve().parents[2] / "recipes/docs/interchange.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert code.count('"my-model"') == 2
    names = {}
    exec(code.replace('"my-model"', repr(str(folder))), names)
    ours, _ = load_export(export, "cpu", "float32")
    ids = names["tokenizer"]("What is 12 + 30?", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(names["model"](ids).logits.float(), ours(ids), atol=1e-4, rtol=0)


def test_tiny_heads_are_refused(make_export):
    export = make_export(n_head=8, n_kv_head=8)
    with pytest.raises(UserError, match="heads of 4 channels"):
        export_hf(export, export.parent / "hf")


def test_the_card_says_what_is_known(make_export):
    export = make_export()
    run = export.parent
    (run / "config.yaml").write_text(
        "model: {init_args: {base: /home/me/secret/base}}\ndata: {init_args: {path: books}}\n"
    )
    (run / "export_evaluation").mkdir()
    score = {"value": 0.2, "low": 0.1, "high": 0.3}
    report = {"metric": "core", "scores": {"v1": score, "v2": {"value": None}}, "is_partial": True}
    (run / "export_evaluation" / "core.json").write_text(json.dumps(report))
    export_hf(export, run / "my-model")
    card = (run / "my-model" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    for words in (
        "# my-model", "base: base", "path: books", "core (v1, partial: tasks are missing) | 0.2000 (95%: 0.1000 to 0.3000)",
        "| 1.5000 |", "## Limits", "context length is 64 tokens",
    ):  # fmt: skip
        assert words in card
    assert "/home/me" not in card


@pytest.mark.parametrize("stage", ["sft", "pretrain"])
def test_the_program_of_the_card(make_export, monkeypatch, capsys, stage):
    export = make_export(stage=stage)
    export_hf(export, export.parent / "my-model")
    card = (export.parent / "my-model" / "README.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    monkeypatch.chdir(export.parent)
    names = {}
    torch.manual_seed(0)
    exec(code, names)
    assert capsys.readouterr().out.strip()
    tokenizer = load_export(export, "cpu", "float32")[1]
    ask = {"messages": [{"role": "user", "content": "Who are you?"}]}
    prompt = (
        render_for_completion(tokenizer, ask)
        if stage == "sft"
        else tokenizer.encode("Once upon a time", prepend_bos=True)
    )
    assert names["inputs"]["input_ids"].tolist() == [prompt]


def test_exporting_needs_no_transformers(make_export, tmp_path):
    code = (
        "import sys; sys.modules['transformers'] = sys.modules['tokenizers'] = None\n"
        "from nanochat_lit.engine.hf_export import export_hf\nfrom nanochat_lit.engine.hf_import import import_hf\n"
        f"export_hf({str(make_export())!r}, {str(tmp_path / 'hf')!r}); import_hf({str(tmp_path / 'hf')!r}, {str(tmp_path / 'back')!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert (tmp_path / "hf" / "modeling_nanochat_lit.py").is_file()
    assert (tmp_path / "back" / "tokenizer.model").is_file()


def test_a_changed_weight_is_noticed(pair, tmp_path):
    export, folder = pair
    tensors = load_file(folder / "model.safetensors")
    tensors["model.network.smear_lambda"] += 0.01
    for path in folder.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ours, _ = load_export(export, "cpu", "float32")
    inputs = torch.tensor([random.Random(0).choices(range(300), k=50)])
    with torch.no_grad():
        assert (load(tmp_path)(inputs).logits - ours(inputs)).abs().max() > 1e-4
    assert len(SPECIAL_TOKENS) == 9
