"""`fit` of distillation: what a run leaves, that the student comes closer to its teacher, and bad settings."""

import pytest
import torch
import torch.nn.functional as F
import yaml

from nanochat_lit import cli, load_export
from nanochat_lit.common.paths import read_json
from nanochat_lit.optim.distillation import forward_kl
from nanochat_lit.training.distill import divergences
from nanochat_lit.training.run_records import read_metrics


@pytest.fixture(scope="module")
def student(write_recipe):
    """The run folder of an untrained student, smaller than the teacher `pretrained`, with its tokenizer."""

    def make(teacher):
        recipe = write_recipe({"depth": 1, "num_steps": 1, "eval_every": 0}, {"tokenizer": str(teacher / "tokenizer")})
        assert cli.main(["fit", "--config", str(recipe)]) == 0
        return recipe.parent / "run"

    return make


@pytest.fixture(scope="module")
def both(student, pretrained):
    return pretrained, student(pretrained)


def recipe_of(tmp_path, path, kind, base, mentor, **model):
    """A recipe of fine-tuning or reinforcement learning, with a teacher."""
    recipe = yaml.safe_load(path.read_text("utf-8"))
    recipe["run_dir"] = str(tmp_path / "distill")
    recipe["model"]["class_path"] = f"nanochat_lit.training.{kind}"
    recipe["model"]["init_args"] |= {"base": str(base / "export"), "teacher": str(mentor / "export"), **model}
    out = tmp_path / "distill.yaml"
    out.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return out


def run(recipe, *options):
    assert cli.main(["fit", "--config", str(recipe), *options]) == 0
    return read_metrics(recipe.parent / "distill" / "metrics.csv")


def test_the_student_comes_closer(tmp_path, both, sft_recipe):
    teacher, student = both
    recipe = recipe_of(
        tmp_path, sft_recipe, "DistillModule", student, teacher, num_steps=10, top_k=8, init_lr_fraction=1.0
    )
    metrics = run(recipe)
    assert metrics[10]["train_loss"] < 0.7 * metrics[1]["train_loss"]
    assert metrics[10]["val_bpb"] < metrics[0]["val_bpb"]
    assert read_json(tmp_path / "distill" / "export" / "provenance.json")["stage"] == "distill"


def test_on_its_own_answers(tmp_path, both, write_rl_recipe):
    teacher, student = both
    recipe = recipe_of(
        tmp_path, write_rl_recipe(), "OnPolicyDistillModule", student, teacher, num_steps=6, init_lr_fraction=1.0
    )
    metrics = run(recipe)
    assert metrics[6]["train_loss"] < metrics[1]["train_loss"]
    assert metrics[6].keys() >= {"val_accuracy", "reward"}


def test_losses_are_those_of_whole_models(both):
    """Of the logits of two models at the targets that count; within 1e-5 nats."""
    models = [load_export(folder / "export", device="cpu", compute_dtype="float32")[0] for folder in both]
    inputs = torch.randint(0, 500, (2, 12), generator=torch.Generator().manual_seed(0))
    targets = torch.where(torch.arange(12) % 3 > 0, inputs.roll(-1, 1), -1)
    with torch.no_grad():
        wanted, found = (model(inputs).log_softmax(-1) for model in models)
        expected = F.kl_div(found, wanted, log_target=True, reduction="none").sum(-1)[targets != -1]
        ours = divergences(models[1], models[0], {"inputs": inputs, "targets": targets}, forward_kl)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_it_continues_bit_for_bit(tmp_path, both, sft_recipe):
    teacher, student = both
    recipe = recipe_of(tmp_path, sft_recipe, "DistillModule", student, teacher, num_steps=4, top_k=8)
    whole = run(recipe, "--checkpoint_every", "1", "--keep_last", "9")
    weights = torch.load(tmp_path / "distill" / "checkpoints" / "step000004.ckpt", weights_only=True)["state_dict"]
    for name in ("step000003.ckpt", "step000004.ckpt", "last.ckpt"):
        (tmp_path / "distill" / "checkpoints" / name).unlink(missing_ok=True)
    assert run(recipe, "--ckpt_path", "last")[4]["train_loss"] == whole[4]["train_loss"]
    again = torch.load(max((tmp_path / "distill" / "checkpoints").glob("step*.ckpt")), weights_only=True)["state_dict"]
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_bad_teachers(tmp_path, both, sft_recipe, write_recipe, capsys):
    teacher, student = both
    other = write_recipe({"num_steps": 1, "eval_every": 0}, {"vocab_size": 400})
    short = write_recipe(
        {"num_steps": 1, "eval_every": 0, "sequence_len": 48, "tokens_per_step": 576},
        {"tokenizer": str(teacher / "tokenizer")},
    )
    assert all(cli.main(["fit", "--config", str(recipe)]) == 0 for recipe in (other, short))
    for settings, message in (
        ({"teacher": str(other.parent / "run" / "export")}, "differs from that of the base"),
        ({"teacher": str(short.parent / "run" / "export")}, "is 48 tokens, shorter than the 64 of the base"),
        ({"teacher": "nowhere"}, "nowhere"),
        ({"top_k": -1}, "top_k is -1"),
    ):
        recipe = recipe_of(tmp_path, sft_recipe, "DistillModule", student, teacher, **settings)
        assert cli.main(["fit", "--config", str(recipe)]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert "Traceback" not in err
