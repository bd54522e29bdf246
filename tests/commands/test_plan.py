"""`plan` against the reference's own numbers, and what it says to impossible ones."""

import json

import pytest

from nanochat_lit import cli


def planned(capsys, *options):
    assert cli.main(["plan", *options, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize(("depth", "ratio"), [(24, 8), (12, 12)])
def test_json_equals_the_reference(depth, ratio, shared, capsys):
    rows = json.loads((shared / "reference" / "hyperparameters.json").read_text("utf-8"))
    (row,) = [row for row in rows if (row["depth"], row["target_param_data_ratio"]) == (depth, ratio)]
    values = planned(capsys, "--depth", str(depth), "--target_param_data_ratio", str(ratio))
    model, training, rates = values["model"], values["training"], values["learning_rates"]
    for ours, theirs in (("n_embd", "n_embd"), ("n_head", "n_head"), ("windows", "windows"), ("head_dim", "head_dim")):
        assert model[ours] == row[theirs]
    for name, number in row["params"].items():
        assert values["parameters"][name] == number
    assert values["parameters"]["scaling"] == row["scaling_params"]
    for ours, theirs in (
        ("flops_per_token", "flops_per_token"),
        ("target_tokens", "target_tokens"),
        ("tokens_per_step", "total_batch_size"),
        ("num_steps", "num_iterations"),
        ("total_tokens", "total_tokens"),
        ("total_flops", "total_flops"),
    ):
        assert training[ours] == row[theirs]
    assert rates["lr_scale"] == row["batch_lr_scale"]
    assert rates["weight_decay"] == row["weight_decay"]
    assert rates["width_scale"] == row["adamw_lr_scale"]


def test_hours_and_dollars(capsys):
    """By hand: FLOPs / (8 GPUs x 989e12 FLOP/s x 0.5)."""
    values = planned(capsys, "--depth", "24", "--target_param_data_ratio", "8")
    hours = values["training"]["total_flops"] / (8 * 989e12 * 0.5) / 3600
    assert values["cost"]["hours"] == pytest.approx(hours)
    assert values["cost"]["dollars"] == pytest.approx(hours * 24)
    other = planned(capsys, "--depth", "24", "--target_param_data_ratio", "8", "--gpus", "1", "--peak_flops_per_s", "1e15",
                    "--mfu", "0.25", "--price_per_gpu_hour", "2", "--micro_batch_size", "8")  # fmt: skip
    assert other["cost"]["hours"] == pytest.approx(values["training"]["total_flops"] / 0.25e15 / 3600)
    assert other["cost"]["dollars"] == pytest.approx(2 * other["cost"]["hours"])


def test_memory_follows_micro_batch_and_strategy(capsys):
    base = planned(capsys, "--depth", "12")["memory_bytes"]
    half = planned(capsys, "--depth", "12", "--micro_batch_size", "8")["memory_bytes"]
    zero = planned(capsys, "--depth", "12", "--strategy", "zero")["memory_bytes"]
    assert half["activations"] < 0.52 * base["activations"]  # the rest are matrices in the compute dtype
    assert zero["optimizer_state"] == base["optimizer_state"] // 8
    assert zero["weights"] == half["weights"] == base["weights"]
    parts = ("weights", "gradients", "optimizer_state", "activations", "workspace", "allocator")
    assert base["total"] == sum(base[part] for part in parts)


def test_memory_for_every_number_of_devices(capsys):
    options = ["--depth", "12", "--gpus", "6", "--tokens_per_step", "393216", "--micro_batch_size", "8"]
    ddp = planned(capsys, *options)["memory_bytes_by_devices"]
    zero = planned(capsys, *options, "--strategy", "zero")
    assert list(ddp) == ["1", "2", "4", "6"]
    assert ddp["1"] < ddp["2"] == ddp["4"] == ddp["6"]  # with several the buckets of ddp
    by_devices = zero["memory_bytes_by_devices"]
    assert by_devices["1"] > by_devices["2"] > by_devices["4"] > by_devices["6"] == zero["memory_bytes"]["total"]


def test_memory_follows_device_dtype_compile_and_checkpointing(capsys):
    base = planned(capsys, "--depth", "12")["memory_bytes"]
    exact = planned(capsys, "--depth", "12", "--compute_dtype", "float32")["memory_bytes"]
    lean = planned(capsys, "--depth", "12", "--activation_checkpointing", "true")["memory_bytes"]
    selective = planned(capsys, "--depth", "12", "--activation_checkpointing", "selective")["memory_bytes"]
    eager = planned(capsys, "--depth", "12", "--compile", "false")["memory_bytes"]
    float8 = planned(capsys, "--depth", "12", "--fp8")["memory_bytes"]
    cpu = planned(capsys, "--depth", "12", "--device", "cpu")["memory_bytes"]
    assert 1.9 * (base["activations"] - base["weights"]) < exact["activations"]
    assert lean["activations"] < base["activations"] / 4
    assert lean["activations"] < selective["activations"] < 0.6 * base["activations"]
    assert float8["activations"] < base["activations"]
    assert base["checkpoint_on_host"] == base["weights"] + base["optimizer_state"]
    assert eager["activations"] > base["activations"]
    assert cpu["activations"] > base["activations"]  # attention by blocks keeps the probabilities


def test_pairs_of_tokens_count_as_parameters_alone(capsys):
    plain, added = planned(capsys, "--depth", "12"), planned(capsys, "--depth", "12", "--bigram_factor", "5")
    assert added["parameters"]["bigram"] == 5 * 32768 * 768
    assert added["parameters"]["total"] - plain["parameters"]["total"] == added["parameters"]["bigram"]
    assert added["training"] == plain["training"]
    assert added["model"]["bigram_factor"] == 5
    assert added["memory_bytes"]["weights"] > plain["memory_bytes"]["weights"]


def test_table(capsys):
    assert cli.main(["plan", "--depth", "24", "--target_param_data_ratio", "8"]) == 0
    out = capsys.readouterr().out
    for section in ("model", "parameters", "training", "learning rates", "memory bytes", "cost"):
        assert f"\n{section}\n" in f"\n{out}"
    assert "1,536" in out  # width
    assert "8 x H100" in out
    assert "GiB" in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--depth", "0"], ["depth 0"]),
        (["--depth", "many"], ["--depth", "many"]),
        (["--depth", "4", "--head_dim", "63"], ["63", "odd"]),
        (["--depth", "4", "--window_pattern", "ABC"], ["'ABC'"]),
        (["--depth", "12", "--target_param_data_ratio", "-1"], ["target_param_data_ratio", "-1"]),
        (["--depth", "12", "--tokens_per_step", "1000"], ["1,000", "use 262,144"]),
        (["--depth", "12", "--target_flops", "1"], ["less than one step"]),
        (["--depth", "12", "--mfu", "1.5"], ["mfu is 1.5"]),
        (["--depth", "12", "--gpus", "0"], ["gpus 0"]),
        (["--depth", "12", "--gpu", "Abacus"], ["'Abacus'", "--peak_flops_per_s"]),
        (["--depth", "12", "--strategy", "magic"], ["magic"]),
        (["--dpeth", "12"], ["--dpeth"]),
    ],
)
def test_impossible_plans(options, words, capsys):
    assert cli.main(["plan", *options]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) <= 2
    for word in words:
        assert word in error


@pytest.mark.parametrize(
    ("gpu", "dtype", "gib"), [("T4", "float16", 16), ("RTX 4090", "bfloat16", 24), ("H100", "bfloat16", 80)]
)
def test_the_card_decides_on_dtype_and_attention(gpu, dtype, gib, capsys):
    values = planned(capsys, "--depth", "14", "--micro_batch_size", "8", "--gpus", "1", "--gpu", gpu)
    card, needed = values["card"], values["memory_bytes"]["total"]
    assert (card["compute_dtype"], card["memory_gib"]) == (dtype, gib)
    assert card["fits"] == (needed <= gib * 2**30)
    larger = planned(
        capsys, "--depth", "14", "--gpus", "1", "--gpu", gpu, "--micro_batch_size", str(2 * card["largest_micro_batch"])
    )
    assert larger["memory_bytes"]["total"] > gib * 2**30
    assert values["cost"]["hardware"] == f"1 x {gpu}"


def test_a_dtype_that_a_card_lacks(capsys):
    assert cli.main(["plan", "--gpu", "T4", "--compute_dtype", "bfloat16"]) == 2
    assert (
        capsys.readouterr().err == "error: compute_dtype is bfloat16, which T4 does not support; use auto or float16\n"
    )


@pytest.mark.parametrize("depth", ["1", "2", "3", "12"])
def test_every_depth_has_a_plan_without_options(capsys, depth):
    training = planned(capsys, "--depth", depth)["training"]
    share = training["tokens_per_step"] // (8 * 2048)
    assert training["micro_batches_per_step"] == max(1, share // 16)
