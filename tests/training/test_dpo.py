"""`fit` of the DPO stage: what a run leaves, that it learns, that sums and caches are right, and bad settings."""

import json
import math

import pytest
import torch
import yaml

from nanochat_lit import cli, load_export
from nanochat_lit.common.paths import read_json
from nanochat_lit.tasks.preferences import Preferences
from nanochat_lit.tokenizer import render_conversation
from nanochat_lit.training.dpo import cached, render_pair
from nanochat_lit.training.run_records import read_metrics

FIGURES = {"preference_accuracy", "margin", "chosen_reward", "rejected_reward"}
VALIDATION = {f"val_{name}" for name in (*FIGURES, "win_rate", "wins", "losses", "kl")}


def fit(recipe, *options):
    assert cli.main(["fit", "--config", str(recipe), *options]) == 0
    return read_metrics(recipe.parent / "run" / "metrics.csv")


def settings_of(recipe):
    return yaml.safe_load(recipe.read_text("utf-8"))


@pytest.fixture(scope="module")
def finished(write_dpo_recipe):
    recipe = write_dpo_recipe()
    return recipe, fit(recipe)


def test_a_run_says_what_happened(finished):
    recipe, metrics = finished
    run = recipe.parent / "run"
    assert [step for step, row in metrics.items() if row.keys() >= VALIDATION] == [0, 2, 4]
    start, end = metrics[0], metrics[4]
    expected = {"val_preference_accuracy": 0.5, "val_win_rate": 0.5, "val_wins": 0, "val_margin": 0, "val_kl": 0}
    assert {name: start[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert end["val_preference_accuracy"] > 0.9
    assert end["val_margin"] == pytest.approx(end["val_chosen_reward"] - end["val_rejected_reward"], abs=1e-6)
    assert end["val_kl"] > 0
    assert metrics[1]["train_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert all(metrics[step].keys() >= FIGURES | {"grad_norm"} for step in (1, 2, 3, 4))
    provenance = read_json(run / "export" / "provenance.json")
    assert (provenance["stage"], provenance["val_preference_accuracy"]) == ("dpo", end["val_preference_accuracy"])
    samples = (run / "samples.md").read_text("utf-8")
    assert samples.count("## Step") == 2
    assert "- **say " in samples
    assert "; base: " in samples


def test_log_ratios_are_those_of_whole_conversations(finished):
    """The margin on the held-out pairs, from the logits of both exports in one piece; within 1e-4."""
    recipe, metrics = finished
    settings = settings_of(recipe)
    task = Preferences(settings["data"]["init_args"]["val"]["init_args"]["path"])
    models = [
        load_export(path, device="cpu", compute_dtype="float32")
        for path in (recipe.parent / "run" / "export", settings["model"]["init_args"]["base"])
    ]

    def total(model, tokenizer, messages):
        token_ids, mask = (torch.tensor(values) for values in render_conversation(tokenizer, {"messages": messages}))
        with torch.no_grad():
            logprobs = model(token_ids[None, :-1])[0].log_softmax(-1)
        return float((logprobs.gather(1, token_ids[1:, None])[:, 0] * mask[1:]).sum())

    margins = []
    for pair in (task[index] for index in range(len(task))):
        ratios = [total(*models[0], pair[name]) - total(*models[1], pair[name]) for name in ("messages", "rejected")]
        margins.append(0.1 * (ratios[0] - ratios[1]))
    assert metrics[4]["val_margin"] == pytest.approx(sum(margins) / len(margins), abs=1e-4)


def test_it_learns_to_say_please(write_dpo_recipe):
    model = {"num_steps": 20, "eval_every": 0, "matrix_lr": 0.1, "warmdown": 0.0, "pairs_per_step": 8}
    metrics = fit(write_dpo_recipe(model, {"micro_batch_size": 16}))
    assert metrics[20]["val_preference_accuracy"] == 1.0
    assert metrics[20]["val_win_rate"] > 0.6, metrics[20]


def test_micro_batches_add_up(finished, write_dpo_recipe):
    """Each pair counts the same, whatever batch it came in: equal within 1e-5 after four steps."""
    metrics = fit(write_dpo_recipe(data={"micro_batch_size": 8}))
    for step, row in finished[1].items():
        for name in {"train_loss", "grad_norm", "val_margin", *FIGURES} & row.keys():
            assert metrics[step][name] == pytest.approx(row[name], abs=1e-5), (step, name)


@pytest.mark.parametrize("loss", ["ipo", "apo_zero"])
def test_other_losses(write_dpo_recipe, loss):
    """Their value where both log-ratios are 0, and a held-out accuracy above that of ties."""
    metrics = fit(write_dpo_recipe({"loss": loss, "eval_every": 0, "beta": 0.5}))
    assert metrics[1]["train_loss"] == pytest.approx(1.0, abs=1e-5)
    assert metrics[4]["val_preference_accuracy"] > 0.5


def test_an_adapter_learns_from_the_same_reference(finished, write_dpo_recipe):
    metrics = fit(write_dpo_recipe({"lora": {"rank": 4, "lr": 0.02}, "eval_every": 0}))
    assert metrics[1]["train_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert metrics[4]["val_preference_accuracy"] > 0.6


def test_a_checkpoint_is_validated_without_the_training_pairs(finished, capsys):
    recipe, metrics = finished
    options = ["--config", str(recipe), "--ckpt_path", "last", "--data.train.path", str(recipe)]
    assert cli.main(["validate", *options]) == 2  # a recipe is not a file of pairs
    capsys.readouterr()
    assert cli.main(["validate", *options[:-2]]) == 0
    assert str(metrics[4]["val_margin"])[:6] in capsys.readouterr().out


def test_the_reference_is_computed_once(finished, tmp_path):
    recipe, _ = finished
    assert {path.name for path in (recipe.parent / "run" / "reference").iterdir()} == {
        "train.safetensors",
        "val.safetensors",
    }
    path, calls = tmp_path / "x.safetensors", []

    def compute():
        calls.append(1)
        return torch.tensor([float(len(calls))])

    assert [cached(path, key, compute).item() for key in ("a", "a", "b", "b")] == [1.0, 1.0, 2.0, 2.0]
    path.write_bytes(b"damaged")
    assert cached(path, "b", compute).item() == 3.0


def test_only_the_answers_are_trained(tokenizer):
    """Earlier answers of the assistant are part of the prompt; results of tools are read, not trained."""
    earlier = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "1+1"},
    ]
    parts = [{"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}, {"type": "text", "text": "two"}]
    chosen = [*earlier, {"role": "assistant", "content": parts}]
    pair = {"messages": chosen, "rejected": [*earlier, {"role": "assistant", "content": "no"}]}
    prompt, answers = render_pair(tokenizer, pair)
    for messages, answer in zip((chosen, pair["rejected"]), answers, strict=True):
        assert prompt + answer.token_ids == render_conversation(tokenizer, {"messages": messages})[0]
    trained = [token for token, mask in zip(answers[0].token_ids, answers[0].mask, strict=True) if mask]
    assert tokenizer.decode(trained).endswith("two<|assistant_end|>") or "two" in tokenizer.decode(trained)
    assert "2" not in tokenizer.decode(trained)
    assert all(answers[1].mask)


def test_pairs_that_do_not_fit_are_counted(write_dpo_recipe, tmp_path, capsys):
    rows = [{"prompt": "say cat", "chosen": "cat", "rejected": "cat " * count} for count in (2, 3, 90)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = write_dpo_recipe({"pairs_per_step": 2, "num_steps": None, "eval_every": 0})
    metrics = fit(recipe, "--data.train.path", str(path))
    assert "1 of 3 train pairs do not fit the model's context of 64 tokens and are left out" in capsys.readouterr().err
    assert max(metrics) == 1
    path.write_text(json.dumps(rows[2]), encoding="utf-8")
    assert cli.main(["fit", "--config", str(recipe), "--overwrite", "true", "--data.train.path", str(path)]) == 2
    assert "no pair of data.train fits the model's context of 64 tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ({"beta": 0.0}, {}, "beta is 0"),
        ({"sft_weight": -1.0}, {}, "sft_weight is -1"),
        ({"pairs_per_step": 0}, {}, "pairs_per_step is 0"),
        ({"max_new_tokens": 0}, {}, "max_new_tokens is 0"),
        ({"loss": "hinge"}, {}, "loss"),
        ({"base": "nowhere"}, {}, "nowhere does not exist"),
        ({}, {"micro_batch_size": 3}, "micro_batch_size is 3; it must be even"),
        ({}, {"micro_batch_size": 6}, "are not a multiple of micro_batch_size 6; use 4"),
        ({}, {"val_pairs": 0}, "val_pairs is 0"),
    ],
)
def test_bad_settings(write_dpo_recipe, capsys, model, data, message):
    assert cli.main(["fit", "--config", str(write_dpo_recipe(model, data))]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_conversations_without_rejected_answers(write_dpo_recipe, conversation_file, capsys):
    task = {
        "class_path": "nanochat_lit.tasks.conversations.FileConversations",
        "init_args": {"path": str(conversation_file)},
    }
    assert cli.main(["fit", "--config", str(write_dpo_recipe(data={"train": task}))]) == 2
    assert "data.train has conversations without rejected answers" in capsys.readouterr().err
