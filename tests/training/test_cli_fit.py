"""`fit` from the command line: what a run leaves behind, overrides, SFT from its export, validate, resume."""

import shutil

import pytest
import torch
import yaml

from nanochat_lit import cli, load_export
from nanochat_lit.common.paths import read_json
from nanochat_lit.training.run_records import read_metrics


def test_a_run_folder_is_whole(pretrained):
    for name in ("config.yaml", "metrics.csv", "samples.md", "tokenizer/tokenizer.model", "checkpoints/last.ckpt"):
        assert (pretrained / name).is_file(), name
    model, tokenizer = load_export(pretrained / "export", device="cpu", compute_dtype="float32")
    assert (model.config.n_layer, model.config.n_embd, model.config.sequence_len) == (2, 32, 64)
    assert model.config.vocab_size == tokenizer.vocab_size == 512
    provenance = read_json(pretrained / "export" / "provenance.json")
    assert (provenance["stage"], provenance["steps"], provenance["tokens"]) == ("pretrain", 4, 2048)


def test_metrics_carry_the_step_they_belong_to(pretrained):
    metrics = read_metrics(pretrained / "metrics.csv")
    assert [step for step, row in metrics.items() if "val_bpb" in row] == [0, 2, 4]
    assert [step for step, row in metrics.items() if "train_loss" in row] == [1, 2, 3, 4]
    assert [row["tokens"] for row in metrics.values() if "tokens" in row] == [512, 1024, 1536, 2048]
    assert metrics[4]["train_loss"] < metrics[1]["train_loss"] < 6.3  # ln 512 = 6.24: training went down from chance
    assert (pretrained / "samples.md").read_text("utf-8").count("## Step") == 2


def test_resolved_config_has_every_key(pretrained):
    config = yaml.safe_load((pretrained / "config.yaml").read_text("utf-8"))
    assert config["model"]["init_args"]["depth"] == 2
    assert config["model"]["init_args"]["matrix_lr"] == 0.02  # a default, written out
    assert config["seed_everything"] == 42


def test_checkpoint_needs_no_unrestricted_pickle(pretrained):
    checkpoint = torch.load(pretrained / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert checkpoint["nanochat_lit"]["config"]["n_layer"] == 2
    export, _ = load_export(pretrained / "export", device="cpu", compute_dtype="float32")
    for name, tensor in export.state_dict().items():
        assert torch.equal(tensor, checkpoint["state_dict"][f"model.{name}"]), name


def test_keys_are_overridden_on_the_command_line(write_recipe, tmp_path):
    overrides = ["--run_dir", str(tmp_path / "run"), "--trainer.max_steps", "1", "--model.n_embd", "64"]
    assert cli.main(["fit", "--config", str(write_recipe()), *overrides, "--data.micro_batch_size", "8"]) == 0
    model, _ = load_export(tmp_path / "run" / "export", device="cpu", compute_dtype="float32")
    assert model.config.n_embd == 64
    assert max(read_metrics(tmp_path / "run" / "metrics.csv")) == 1
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text("utf-8"))
    assert config["trainer"]["max_steps"] == 1
    assert config["data"]["init_args"]["micro_batch_size"] == 8


def test_sft_starts_from_the_export(sft_recipe, pretrained, tmp_path):
    assert cli.main(["fit", "--config", str(sft_recipe)]) == 0
    run = tmp_path / "sft"
    base, base_tokenizer = load_export(pretrained / "export", device="cpu", compute_dtype="float32")
    tuned, tokenizer = load_export(run / "export", device="cpu", compute_dtype="float32")
    assert tuned.config == base.config
    assert tokenizer.fingerprint == base_tokenizer.fingerprint
    # the weights are the base's, moved a little: three steps cannot have made them anew
    change = (tuned.lm_head.weight - base.lm_head.weight).norm() / base.lm_head.weight.norm()
    assert 0 < change < 1
    metrics = read_metrics(run / "metrics.csv")
    assert [step for step, row in metrics.items() if "val_bpb" in row] == [0, 3]
    assert read_json(run / "export" / "provenance.json")["stage"] == "sft"


def test_sft_learns(sft_recipe, tmp_path):
    """What three steps of a toy do to its figure is chance; two dozen took it from 2.69 to 2.55."""
    assert cli.main(["fit", "--config", str(sft_recipe), "--model.num_steps", "24"]) == 0
    metrics = read_metrics(tmp_path / "sft" / "metrics.csv")
    assert metrics[24]["val_bpb"] < metrics[0]["val_bpb"] - 0.05


def test_sft_without_steps_is_one_epoch(sft_recipe, tmp_path):
    recipe = yaml.safe_load(sft_recipe.read_text("utf-8"))
    del recipe["model"]["init_args"]["num_steps"]
    sft_recipe.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert cli.main(["fit", "--config", str(sft_recipe)]) == 0
    # 198 conversations of 10 to 16 tokens each in rows of 65: 4 to 6 a row, so 33 to 50 rows, of which a step takes 8
    assert 3 <= max(read_metrics(tmp_path / "sft" / "metrics.csv")) <= 6


def test_sft_keeps_the_moments_of_pretraining(sft_recipe, pretrained, tmp_path):
    checkpoint = str(pretrained / "checkpoints" / "last.ckpt")
    assert cli.main(["fit", "--config", str(sft_recipe), "--model.optimizer_from", checkpoint]) == 0
    warm = torch.load(tmp_path / "sft" / "checkpoints" / "last.ckpt", weights_only=True)
    steps = {float(state["step"]) for state in warm["optimizer_states"][0]["state"].values() if "step" in state}
    assert steps == {4.0 + 3.0}


def test_a_model_with_pairs_from_fit_to_chat(write_recipe, tmp_path, capsys):
    run = tmp_path / "run"
    options = ["--run_dir", str(run), "--model.bigram_factor", "2", "--trainer.max_steps", "3"]
    recipe = str(write_recipe())
    assert cli.main(["fit", "--config", recipe, *options]) == 0
    model, _ = load_export(run / "export", device="cpu", compute_dtype="float32")
    assert model.config.bigram_factor == 2
    assert model.bigram.weight.shape == (1024, 32)
    assert model.bigram.weight.any()
    assert "lr/bigram" in read_metrics(run / "metrics.csv")[3]
    further = [*options[:-1], "4", "--ckpt_path", "last"]
    assert cli.main(["fit", "--config", recipe, *further]) == 0
    capsys.readouterr()
    assert cli.main(["chat", "--model", str(run / "export"), "--device", "cpu", "-p", "hello"]) == 0
    assert capsys.readouterr().out.strip()


def test_validate_gives_the_figure_of_training(pretrained, capsys):
    before = (pretrained / "config.yaml").read_bytes()
    arguments = ["--config", str(pretrained / "config.yaml"), "--ckpt_path", str(pretrained / "checkpoints/last.ckpt")]
    assert cli.main(["validate", *arguments]) == 0
    (shown,) = [word for word in capsys.readouterr().out.split() if word.startswith(("1.", "2.", "3."))]
    assert float(shown) == pytest.approx(read_metrics(pretrained / "metrics.csv")[4]["val_bpb"], abs=1e-6)
    assert (pretrained / "config.yaml").read_bytes() == before


def test_resume_goes_on_and_keeps_the_past(pretrained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(pretrained, run)
    before = read_metrics(run / "metrics.csv")
    samples = (run / "samples.md").read_text("utf-8")
    options = ["--run_dir", str(run), "--ckpt_path", str(run / "checkpoints" / "last.ckpt"), "--trainer.max_steps", "6"]
    assert cli.main(["fit", "--config", str(run / "config.yaml"), *options]) == 0
    after = read_metrics(run / "metrics.csv")
    assert {step: after[step] for step in before} == before
    assert [step for step, row in after.items() if "train_loss" in row] == [1, 2, 3, 4, 5, 6]
    assert (run / "samples.md").read_text("utf-8").startswith(samples)
    checkpoints = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert "last.ckpt" in checkpoints
    assert "last-v1.ckpt" not in checkpoints
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6
    assert read_json(run / "export" / "provenance.json")["steps"] == 6


def test_a_finished_checkpoint_still_gives_an_export(pretrained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(pretrained, run)
    shutil.rmtree(run / "export")
    options = ["--run_dir", str(run), "--ckpt_path", str(run / "checkpoints" / "last.ckpt")]
    assert cli.main(["fit", "--config", str(run / "config.yaml"), *options]) == 0
    assert "the checkpoint is at step 4 of 4" in capsys.readouterr().err
    assert read_json(run / "export" / "provenance.json")["steps"] == 4


def test_a_used_folder_is_taken_over_on_demand_only(write_recipe, tmp_path, capsys):
    options = ["--run_dir", str(tmp_path / "run"), "--trainer.max_steps"]
    recipe = str(write_recipe())
    assert cli.main(["fit", "--config", recipe, *options, "2"]) == 0
    capsys.readouterr()
    assert cli.main(["fit", "--config", recipe, *options, "1"]) == 2
    error = capsys.readouterr().err
    assert "reached step 2" in error
    assert "--overwrite true" in error
    assert max(read_metrics(tmp_path / "run" / "metrics.csv")) == 2
    assert cli.main(["fit", "--config", recipe, *options, "1", "--overwrite", "true"]) == 0
    assert max(read_metrics(tmp_path / "run" / "metrics.csv")) == 1
    assert (tmp_path / "run" / "samples.md").read_text("utf-8").count("## Step") == 1
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 1


def test_help_and_print_config(write_recipe, capsys):
    assert cli.main(["fit", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--run_dir" in text
    assert "--compute_dtype" in text
    assert cli.main(["fit", "--config", str(write_recipe()), "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["init_args"]["depth"] == 2
    assert printed["log_every"] == 1


def test_loggers_of_the_recipe_are_kept(write_recipe, tmp_path):
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path / "csv")}}
    trainer = {"accelerator": "cpu", "devices": 1, "max_steps": 1, "logger": [logger]}
    recipe = write_recipe(trainer=trainer)
    assert cli.main(["fit", "--config", str(recipe)]) == 0
    assert list((tmp_path / "csv").rglob("metrics.csv"))
    assert (recipe.parent / "run" / "metrics.csv").is_file()


def test_the_final_step_is_in_last_ckpt_whatever_the_interval(pretrained, tmp_path):
    """Saved every 4 steps of 6, the checkpoint that resumes and warm-starts must still be that of step 6."""
    run = tmp_path / "run"
    arguments = ["--config", str(pretrained / "config.yaml"), "--run_dir", str(run), "--checkpoint_every", "4"]
    assert cli.main(["fit", *arguments, "--trainer.max_steps", "6"]) == 0
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6
    assert (run / "plan.json").exists()
