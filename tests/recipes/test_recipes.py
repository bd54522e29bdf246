"""Every recipe: known keys only, and numbers that fit together."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import yaml

from nanochat_lit import cli
from nanochat_lit.model.memory import training_memory
from nanochat_lit.optim import derive_plan, micro_batches
from nanochat_lit.training import PretrainModule

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
SWEEPS = {"miniseries.yaml", "scaling_laws.yaml"}  # of `sweep`, see test_sweeps.py
RECIPES = sorted(path.name for path in FOLDER.glob("*.yaml") if path.name not in SWEEPS)
WRITTEN = {"cpu_chat", "cpu_text", "d12", "gpt2_speedrun", "quickstart_pretrain", "quickstart_sft", "qwen3_small"}
WRITTEN |= {"cpu_sft", "gsm8k_rl", "sft", "tiny_world_distill", "tiny_world_dpo", "tiny_world_rl"}
BASES = {"cpu_chat": "cpu_text", "cpu_sft": "cpu_text", "quickstart_sft": "quickstart_pretrain", "sft": "gpt2_speedrun"}
BASES |= {"tiny_world_distill": "quickstart_pretrain"}  # with another depth
ONE_GPU = {"one_gpu_8gb": 8, "one_gpu_12gb": 12, "one_gpu_16gb": 16, "one_gpu_24gb": 24}  # GiB


def resolved(name):
    """What LightningCLI makes of a recipe; it fails on unknown keys and wrong types."""
    out = io.StringIO()
    with redirect_stdout(out):
        assert cli.main(["fit", "--config", f"recipes/{name}", "--print_config"]) == 0
    return yaml.safe_load(out.getvalue())


def test_the_recipes_are_there():
    assert {Path(name).stem for name in RECIPES} >= WRITTEN | set(ONE_GPU)


@pytest.mark.parametrize("name", RECIPES)
def test_every_key_is_known_and_none_is_lost(name):
    given, config = yaml.safe_load((FOLDER / name).read_text("utf-8")), resolved(name)

    def missing(part, whole, path=""):
        for key, value in part.items():
            if isinstance(value, dict):
                yield from missing(value, whole.get(key) or {}, f"{path}{key}.")
            elif whole.get(key) != value and str(whole.get(key)) != str(value):
                yield f"{path}{key}: {value} became {whole.get(key)}"

    assert list(missing(given, config)) == []
    assert config["run_dir"] == f"runs/{Path(name).stem}" or name.startswith("quickstart")


@pytest.mark.parametrize("name", RECIPES)
def test_an_unknown_key_would_be_found(name, tmp_path, capsys):
    recipe = yaml.safe_load((FOLDER / name).read_text("utf-8"))
    recipe["model"]["init_args"]["not_a_key"] = 1
    (tmp_path / name).write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert cli.main(["fit", "--config", str(tmp_path / name), "--print_config"]) == 2
    assert "'not_a_key'" in capsys.readouterr().err


@pytest.mark.parametrize("name", RECIPES)
def test_batches_come_out_whole(name):
    config = resolved(name)
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    if config["model"]["class_path"].endswith("DPOModule"):
        assert 2 * model["pairs_per_step"] // int(config["trainer"]["devices"]) % data["micro_batch_size"] == 0
        return
    if config["model"]["class_path"].endswith("RLModule"):
        rows = model["questions_per_step"] // int(config["trainer"]["devices"]) * model["num_samples"]
        assert rows % data["micro_batch_size"] == model["questions_per_step"] % int(config["trainer"]["devices"]) == 0
        return
    if config["model"]["class_path"].endswith(("SFTModule", "DistillModule")):
        base = resolved(f"{BASES[Path(name).stem]}.yaml")
        assert model["base"] in (base["run_dir"] + "/export", "runs/student/export")
        sequence_len, tokens = base["model"]["init_args"]["sequence_len"], model["tokens_per_step"]
        if tokens is None:  # what the base was trained with
            module = PretrainModule(**base["model"]["init_args"])
            shape = module.build_config(base["data"]["init_args"]["vocab_size"])
            tokens = derive_plan(shape, num_steps=module.num_steps, **module.horizon).tokens_per_step
    else:
        module = PretrainModule(**model)
        plan = derive_plan(module.build_config(data["vocab_size"]), num_steps=model["num_steps"], **module.horizon)
        sequence_len, tokens = model["sequence_len"], plan.tokens_per_step
    assert micro_batches(tokens, data["micro_batch_size"], sequence_len, int(config["trainer"]["devices"])) >= 1


@pytest.mark.parametrize(("name", "depth", "ratio"), [("gpt2_speedrun.yaml", 24, 8), ("d12.yaml", 12, 12)])
def test_derived_numbers_equal_the_reference(name, depth, ratio, reference):
    """Reference: nanochat's own functions on the same dial (tests/reference/hyperparameters.json). Exact."""
    rows = json.loads((reference / "hyperparameters.json").read_text("utf-8"))
    (row,) = [row for row in rows if (row["depth"], row["target_param_data_ratio"]) == (depth, ratio)]
    config = resolved(name)
    module = PretrainModule(**config["model"]["init_args"])
    shape = module.build_config(config["data"]["init_args"]["vocab_size"])
    plan = derive_plan(shape, num_steps=module.num_steps, **module.horizon)
    assert (shape.n_embd, shape.n_head, list(shape.windows)) == (row["n_embd"], row["n_head"], row["windows"])
    assert (shape.vocab_size, shape.sequence_len) == (row["vocab_size"], row["max_seq_len"])
    assert plan.target_tokens == row["target_tokens"]
    assert plan.tokens_per_step == row["total_batch_size"]
    assert plan.num_steps == row["num_iterations"]
    assert plan.total_tokens == row["total_tokens"]
    assert plan.flops_per_token == row["flops_per_token"]
    assert plan.total_flops == row["total_flops"]
    assert plan.lr_scale == row["batch_lr_scale"]
    assert plan.weight_decay == row["weight_decay"]


@pytest.mark.parametrize(("name", "gib"), ONE_GPU.items())
def test_one_gpu_recipes_fit_their_card_by_the_estimate(name, gib):
    """CUDA's own share is taken as 0.8 GiB, and a twentieth of the rest is left free; twice the depth would not fit."""
    config = resolved(f"{name}.yaml")
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    usable = 0.95 * (gib - 0.8) * 2**30

    def estimate(**changes):
        shape = PretrainModule(**{**model, **changes}).build_config(data["vocab_size"])
        return training_memory(shape, micro_batch_size=data["micro_batch_size"]).total

    assert estimate() <= usable < estimate(depth=2 * model["depth"])
    comment = (FOLDER / f"{name}.yaml").read_text("utf-8").splitlines()[0:2]
    assert f"{estimate() / 2**30:.1f} GiB" in " ".join(comment)


def test_the_speedrun_is_the_speedrun():
    config = resolved("gpt2_speedrun.yaml")
    assert config["compute_dtype"] == "auto"  # bfloat16 on every card that the recipe is for
    assert (config["trainer"]["accelerator"], int(config["trainer"]["devices"])) == ("gpu", 8)
    assert (config["trainer"]["strategy"], config["data"]["init_args"]["long_documents"]) == ("zero", "crop")
