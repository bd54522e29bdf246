"""The architecture qwen3: the formulas against transformers' own class, its cache, its counts, and whole runs."""

import csv

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file

from nanochat_lit import Engine, cli, load_export
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import read_json
from nanochat_lit.engine.native_folder import hf_config, to_hf
from nanochat_lit.evaluation.scoring import Example, GPTScorer
from nanochat_lit.model import GPTConfig, KVCache
from nanochat_lit.model.accounting import count_parameters, flops_per_token
from nanochat_lit.model.packed import describe_kernel
from nanochat_lit.optim import param_groups

SHAPES = {
    "plain": {"n_layer": 3},
    "gqa": {"n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 64},
    "tied": {"n_layer": 2, "tie_embeddings": True},
}


@pytest.fixture(params=sorted(SHAPES))
def model(request, random_model):
    return random_model(architecture="qwen3", **SHAPES[request.param])


def test_logits_are_those_of_transformers(model):
    transformers = pytest.importorskip("transformers", reason="needs the hf extra")
    theirs = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**hf_config(model.config))).eval()
    missing = theirs.load_state_dict(to_hf(model.config, model.state_dict()), strict=False)
    assert missing.missing_keys == (["lm_head.weight"] if model.config.tie_embeddings else [])
    assert missing.unexpected_keys == []
    theirs.tie_weights()
    ids = torch.randint(0, 320, (2, 64))
    with torch.no_grad():
        expected = theirs(ids).logits
        torch.testing.assert_close(model(ids), expected, atol=1e-4, rtol=0)
        assert expected.std() > 0.3
        model.sin.neg_()  # nanochat's turn of the rotation would be noticed
        assert (model(ids) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("cut", [1, 17])
def test_a_cache_changes_nothing(model, cut):
    ids = torch.randint(0, 320, (2, 40))
    cache = KVCache(model.config, batch_size=2, max_len=40)
    with torch.no_grad():
        parts = [model(ids[:, :cut], kv_cache=cache)]
        parts += [model(ids[:, place : place + 1], kv_cache=cache) for place in range(cut, 40)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), atol=1e-4, rtol=0)


def test_losses_are_of_logits_without_a_cap(model):
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # far beyond a softcap
    ids = torch.randint(0, 320, (2, 33))
    inputs, targets = ids[:, :-1], ids[:, 1:].clone()
    targets[0, :9] = -1
    logits = model(inputs)
    assert logits.abs().max() > 15
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
    loss, losses = model.loss_and_token_losses(inputs, targets)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(losses.sum() / (targets >= 0).sum(), expected)
    parameters = list(model.parameters())
    found, wanted = torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(model(inputs, targets, "none"), losses)
        ((score,),) = GPTScorer(model).score([Example(rows=[ids[0].int().numpy()], starts=[1])])
        everything = F.cross_entropy(logits[0], ids[0, 1:])
        assert score.mean_loss == pytest.approx(float(everything), rel=1e-5)


def test_parameters_and_operations_are_counted(model):
    config, counts = model.config, count_parameters(model.config)
    width, kv_width, hidden = config.n_embd, config.n_kv_head * config.head_dim, -(-8 * config.n_embd // 192) * 64
    block = 2 * width * width + 2 * width * kv_width + 3 * width * hidden
    norms = config.n_layer * (2 * width + 2 * config.head_dim) + width
    assert counts.transformer_matrices == config.n_layer * block
    assert counts.scalars == norms
    assert counts.lm_head == 320 * width
    assert counts.tables == (0 if config.tie_embeddings else 320 * width)
    assert counts.total == sum(parameter.numel() for parameter in model.parameters())
    attention = 12 * config.n_layer * width * config.sequence_len
    assert flops_per_token(config) == 6 * (config.n_layer * block + 320 * width) + attention


def test_every_parameter_has_one_optimizer_group(model):
    groups = param_groups(model)
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert len(grouped) == len({id(parameter) for parameter in grouped}) == len(list(model.parameters()))
    assert all((group["kind"] == "muon") == (group["name"].startswith("muon")) for group in groups)
    assert all(parameter.ndim == 2 for group in groups if group["kind"] == "muon" for parameter in group["params"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window_pattern": "SSSL"}, "every layer of qwen3 sees the whole context"),
        ({"bigram_factor": 5}, "qwen3 has no bigram embedding"),
        ({"architecture": "nanochat", "tie_embeddings": True}, "tie_embeddings needs architecture qwen3"),
        ({"tie_embeddings": 1}, "use true or false"),
    ],
)
def test_what_it_does_not_have_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        GPTConfig.from_depth(2, **{"architecture": "qwen3", **fields})


@pytest.mark.parametrize("is_tied", [False, True])
def test_it_trains_resumes_exports_and_decodes(write_recipe, is_tied):
    options = {"architecture": "qwen3", "tie_embeddings": is_tied, "n_kv_head": 1}
    whole, rest = write_recipe(model=options), write_recipe(model=options)
    assert cli.main(["fit", "--config", str(whole), "--checkpoint_every", "2"]) == 0
    losses = _losses(whole.parent / "run")
    assert losses[-1] < losses[0]
    if not is_tied:
        tokenizer, middle = (whole.parent / "run" / name for name in ("tokenizer", "checkpoints/step000002.ckpt"))
        words = ["fit", "--config", str(rest), "--ckpt_path", str(middle), "--data.tokenizer", str(tokenizer)]
        assert cli.main(words) == 0
        assert _losses(rest.parent / "run") == losses[2:]
    model, tokenizer = load_export(whole.parent / "run" / "export", compute_dtype="float32", cast_weights=True)
    assert describe_kernel(model) == "PyTorch; not the C++ kernel: it does not know Qwen3GPT"
    plain, _ = load_export(whole.parent / "run" / "export", compute_dtype="float32")
    prompts = [tokenizer.encode(text, prepend_bos=True) for text in ("the cat sat", "a dog")]
    engine = Engine(model, tokenizer)
    answers = [engine.generate(prompt, max_new_tokens=12, temperature=0)[0] for prompt in prompts]
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt])
        for _ in answer:
            with torch.no_grad():
                ids = torch.cat((ids, plain(ids)[:, -1].argmax(dim=-1, keepdim=True)), dim=1)
        assert ids[0, len(prompt) :].tolist() == answer


def _losses(run):
    rows = csv.DictReader((run / "metrics.csv").read_text("utf-8").splitlines())
    return [float(row["train_loss"]) for row in rows if row["train_loss"]]


def test_another_architecture_is_not_resumed(write_recipe, capsys):
    recipe = write_recipe(model={"architecture": "qwen3", "num_steps": 1})
    assert cli.main(["fit", "--config", str(recipe)]) == 0
    values = yaml.safe_load(recipe.read_text())
    values["model"]["init_args"] |= {"architecture": "nanochat", "num_steps": 2}
    recipe.write_text(yaml.safe_dump(values))
    assert cli.main(["fit", "--config", str(recipe), "--ckpt_path", "last"]) == 2
    assert "architecture is nanochat, but the checkpoint has qwen3" in capsys.readouterr().err


@pytest.fixture(scope="module")
def base(write_recipe):
    """A pretrained export for the later stages."""
    recipe = write_recipe(model={"architecture": "qwen3", "n_kv_head": 1, "num_steps": 2, "eval_every": 0})
    assert cli.main(["fit", "--config", str(recipe)]) == 0
    return recipe.parent / "run" / "export"


def test_fine_tuning(base, sft_recipe):
    words = ["--model.base", str(base), "--model.num_steps", "6", "--model.init_lr_fraction", "1.0"]
    assert cli.main(["fit", "--config", str(sft_recipe), *words]) == 0
    run = sft_recipe.parent / "sft"
    losses = _losses(run)
    assert len(losses) == 6
    assert losses[-1] < losses[0] - 0.03
    every_weight_moved(base, run / "export")


def test_reinforcement_learning(base, write_rl_recipe):
    recipe = write_rl_recipe(model={"base": str(base), "num_steps": 2, "eval_every": 0})
    assert cli.main(["fit", "--config", str(recipe)]) == 0
    every_weight_moved(base, recipe.parent / "run" / "export")


def every_weight_moved(before, after):
    assert read_json(after / "config.json") == read_json(before / "config.json")
    old, new = (load_file(folder / "model.safetensors") for folder in (before, after))
    assert old.keys() == new.keys()
    assert [name for name in new if torch.equal(new[name], old[name])] == []
