"""Hugging Face models: the scores of a plain evaluation of whole rows, by the same code that measures our own models."""

import json
import math
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from nanochat_lit import cli
from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.export import save_export
from nanochat_lit.engine.hf_export import export_hf
from nanochat_lit.evaluation.bpb import evaluate_documents
from nanochat_lit.evaluation.core import encode_examples, evaluate_task, load_bundle
from nanochat_lit.evaluation.huggingface import HuggingFaceScorer, is_huggingface, load_huggingface
from nanochat_lit.evaluation.scoring import GPTScorer

TEXTS = ["the cat sat on the mat, naïve 日本語 🙂.", "a dog <|endoftext|> ran.", "", "small river " * 40]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, save_folder):
    return {kind: save_folder(tmp_path_factory.mktemp(kind), kind) for kind in ("gpt2", "llama")}


@pytest.fixture(scope="module")
def models(folders):
    return {kind: load_huggingface(folder, "cpu", "float32") for kind, folder in folders.items()}


@torch.no_grad()
def plain(model, row, start):
    """One row by itself: all logits of the whole row."""
    ids = torch.from_numpy(row).long()
    logits = model.model(ids[None]).logits[0, start - 1 : -1]
    return F.cross_entropy(logits, ids[start:]).item(), bool((logits.argmax(-1) == ids[start:]).all())


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("label", ["copa", "arc_easy", "winograd", "lambada_openai"])
def test_core_is_that_of_whole_rows(kind, label, models, core_bundle):
    model = models[kind]
    (task,) = load_bundle(core_bundle, labels=[label], max_per_task=20)
    examples, num_cut = encode_examples(task, range(20), model.tokenizer, 256)
    assert num_cut == 0
    scorer = HuggingFaceScorer(model, tokens_per_pass=500)
    assert scorer.shares
    right = []
    for index, (example, scores) in enumerate(zip(examples, scorer.score(examples), strict=True)):
        wanted = [plain(model, row, start) for row, start in zip(example.rows, example.starts, strict=True)]
        assert {int(row[0]) for row in example.rows} == {0}, "every row begins with the end-of-text token"
        np.testing.assert_allclose([score.mean_loss for score in scores], [loss for loss, _ in wanted], rtol=2e-5)
        losses = [loss for loss, _ in wanted]
        is_greedy = wanted[0][1]
        is_lm = task.kind == "language_modeling"
        right.append(int(is_greedy if is_lm else losses.index(min(losses)) == task.rows[index]["gold"]))
    assert evaluate_task(scorer, model.tokenizer, task).correct == right
    scorer.shares = scorer.causal.keeps_logits = False  # as for models whose cache is another, whose forward keeps all
    try:
        assert evaluate_task(scorer, model.tokenizer, task).correct == right
    finally:
        scorer.causal.keeps_logits = True


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_bits_per_byte_are_those_of_a_naive_loop(kind, models):
    model = models[kind]
    nats = 0.0
    for text in TEXTS:
        ids = model.tokenizer.encode(text)
        assert model.tokenizer.decode(ids) == text
        for start in range(0, len(ids), 50):
            row = np.array([0, *ids[start : start + 50]], dtype=np.int32)
            nats += plain(model, row, 1)[0] * (len(row) - 1)
    result = evaluate_documents(model, model.tokenizer, TEXTS, 50, micro_batch_size=3)
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    assert result["bytes"] == num_bytes
    assert result["bpb"] == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)


@pytest.mark.parametrize("pads", [True, False])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_continuations_are_greedy_or_seeded(kind, pads, models, monkeypatch):
    """In batches: padded on the left, or of equal lengths where a model would read the padding; near the context, too."""
    model = models[kind]
    monkeypatch.setattr(model, "has_plain_cache", pads)
    texts = ["the cat", "a", "under a small tree the dog", "a", "the mat " * 200]
    prompts = [model.tokenizer.encode(text, prepend_bos=True)[: 256 - 3] for text in texts]
    for prompt, completion in zip(prompts, model.generate_batch(prompts, max_new_tokens=6), strict=True):
        ids = list(prompt)
        for _ in range(min(6, 256 - len(prompt))):
            with torch.no_grad():
                ids.append(int(model.model(torch.tensor([ids])).logits[0, -1].argmax()))
        expected = ids[len(prompt) :]
        assert completion == (expected[: expected.index(0)] if 0 in expected else expected)
    sampled = [model.generate_batch(prompts, max_new_tokens=6, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    with pytest.raises(UserError, match="a prompt of 256 tokens leaves no space in the context of 256"):
        model.generate_batch([[0] * 256], max_new_tokens=6)


def test_batches_are_bounded_and_of_one_limit(models, monkeypatch):
    lengths, limits = [5, 9, 7, 8, 6], [4, 4, 4, 2, 4]
    monkeypatch.setattr("nanochat_lit.evaluation.huggingface.CACHED_TOKENS", 30)
    assert list(models["gpt2"]._batches(lengths, limits)) == [[3], [1, 2], [4, 0]]
    monkeypatch.setattr(models["gpt2"], "has_plain_cache", False)
    assert list(models["gpt2"]._batches([5, 9, 5], [4, 4, 4])) == [[1], [0, 2]]


def run(capsys, *arguments):
    assert cli.main(["evaluate", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_the_commands(folders, core_bundle, tmp_path, capsys, models):
    folder = folders["gpt2"]
    core = ("core", "--model", folder, "--bundle", core_bundle, "--compute_dtype", "float32", "--device", "cpu")
    report = json.loads(run(capsys, *core, "--max_per_task", 10, "--out", tmp_path, "--json"))
    for task, entry in zip(load_bundle(core_bundle, 10), report["tasks"], strict=True):
        expected = evaluate_task(HuggingFaceScorer(models["gpt2"]), models["gpt2"].tokenizer, task)
        assert (entry["label"], entry["accuracy"]) == (task.label, expected.accuracy)
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    bpb = ("bpb", "--model", folder, "--data", tmp_path / "text.jsonl", "--compute_dtype", "float32", "--device", "cpu")
    result = json.loads(run(capsys, *bpb, "--json"))
    expected = evaluate_documents(models["gpt2"], models["gpt2"].tokenizer, TEXTS, 256)
    assert result["bpb"] == pytest.approx(expected["bpb"], rel=1e-5)
    assert cli.main(["evaluate", *map(str, bpb), "--sequence_len", "300"]) == 2
    assert "sequence_len is 300; the model's context is 256" in capsys.readouterr().err
    out = run(capsys, "samples", "--model", folder, "--chat", "false", "--max_new_tokens", 3)
    assert out.startswith("> The capital of France is\n")


def test_what_only_our_models_have_learnt_is_refused(folders, capsys):
    assert cli.main(["evaluate", "tiny_world", "--model", str(folders["gpt2"])]) == 2
    assert "tiny_world needs a nanochat-lit export" in capsys.readouterr().err


def test_questions_go_through_the_chat_template(folders, tmp_path, save_folder, capsys):
    options = ("samples", "--model", folders["gpt2"], "--max_new_tokens", 3)
    assert cli.main(["evaluate", *map(str, options)]) == 2
    assert "no chat template" in capsys.readouterr().err
    folder = save_folder(tmp_path / "chat", "gpt2")
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
    (folder / "chat_template.jinja").write_text(template)
    tokenizer = load_huggingface(folder, "cpu", "float32").tokenizer
    assert tokenizer.decode(tokenizer.render_question("Hello!")) == "<user>Hello!\n<assistant>"
    assert "> Hello!" in run(capsys, "samples", "--model", folder, "--max_new_tokens", 3)


def test_which_folders_are_theirs(folders, random_model, tokenizer, tmp_path):
    save_export(tmp_path / "export", random_model(), tokenizer)
    assert is_huggingface(folders["llama"])
    assert not is_huggingface(tmp_path / "export")
    assert not is_huggingface(tmp_path)


def test_pickles_and_foreign_code_are_refused(folders, tmp_path, save_folder):
    folder = save_folder(tmp_path / "own", "gpt2")
    content = json.loads((folder / "config.json").read_text())
    content |= {"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine", "AutoModelForCausalLM": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UserError, match="use --trust_remote_code true"):
        load_huggingface(folder, "cpu")
    assert not (tmp_path / "ran").exists()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="no safetensors weights"):
        load_huggingface(folder, "cpu")


def test_damaged_and_incomplete_folders_are_named(folders, tmp_path, save_folder):
    folder = save_folder(tmp_path / "cut", "gpt2")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cut cannot be read"):
        load_huggingface(folder, "cpu")
    tensors = safetensors.torch.load(content)
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"cut lacks the weights transformer\.h\.1\.mlp\.c_fc\.weight"):
        load_huggingface(folder, "cpu")
    (folder / "model.safetensors").write_bytes(content)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="cut"):
        load_huggingface(folder, "cpu")


def test_without_transformers_the_message_says_what_to_install(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"needs transformers; pip install '.*\[hf\]'"):
        load_huggingface(folders["gpt2"], "cpu")


def test_an_old_transformers_is_refused(folders, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda package: {"transformers": "4.57.1"}[package])
    with pytest.raises(
        UserError, match=r"needs transformers 5\.10 or newer, 4\.57\.1 is installed; pip install '.*\[hf\]'"
    ):
        load_huggingface(folders["gpt2"], "cpu")


def test_our_own_models_in_that_form_score_as_they_do(core_bundle, random_model, tokenizer, tmp_path):
    """An export written as a Hugging Face folder brings its code along; run on request, it gives the answers of the export."""
    model = random_model(sequence_len=256)
    save_export(tmp_path / "export", model, tokenizer)
    export_hf(tmp_path / "export", tmp_path / "hf")
    with pytest.raises(UserError, match="use --trust_remote_code true"):
        load_huggingface(tmp_path / "hf", "cpu")
    other = load_huggingface(tmp_path / "hf", "cpu", "float32", trust_remote_code=True)
    assert other.tokenizer.bos_id == tokenizer.bos_id
    for task in load_bundle(core_bundle, 15):
        ours = evaluate_task(GPTScorer(model), tokenizer, task)
        assert evaluate_task(HuggingFaceScorer(other), other.tokenizer, task).correct == ours.correct
    ours = evaluate_documents(model, tokenizer, TEXTS, 256)
    assert evaluate_documents(other, other.tokenizer, TEXTS, 256)["bpb"] == pytest.approx(ours["bpb"], rel=1e-5)
