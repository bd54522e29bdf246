"""Mistakes of the user: each is answered by the command line in a line or two, before anything long has begun."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from nanochat_lit import cli


@pytest.fixture
def refused(capfd):
    """Run the command line; it must fail in a line or two that name every one of `words`. Warnings are errors in tests."""

    def run(argv, *words):
        capfd.readouterr()
        status = cli.main(list(map(str, argv)))
        captured = capfd.readouterr()
        assert status not in (0, None)
        lines = [line for line in captured.err.splitlines() if not line.startswith(("tokenizer: ", "data: "))]
        assert 1 <= len(lines) <= 2, captured.err
        assert "Traceback" not in captured.err
        assert any(line.startswith("error: ") for line in lines)
        for word in words:
            assert word in captured.err, captured.err
        return captured.err

    return run


MODEL_MISTAKES = [
    ({"dpeth": 3}, ["'dpeth'", "did you mean 'depth'"]),
    ({"depth": "deep"}, ["depth", "deep"]),
    ({"depth": 0}, ["depth 0", "at least 1"]),
    ({"n_embd": 50, "n_head": 3}, ["n_embd 50", "n_head 3", "n_embd 51"]),
    ({"head_dim": 33}, ["33", "odd"]),
    ({"n_embd": 64, "n_head": 4, "n_kv_head": 3}, ["n_kv_head 3", "n_head 4"]),
    ({"window_pattern": "SXL"}, ["SXL", "letters S (short) and L (long)"]),
    ({"window_pattern": ""}, ["window_pattern ''"]),
    ({"tokens_per_step": 1000}, ["1,000", "= 256", "768 or 1,024"]),
    ({"tokens_per_step": 100}, ["100", "use 256"]),
    ({"tokens_per_step": -512}, ["-512"]),
    ({"num_steps": 0}, ["num_steps is 0"]),
    ({"sampled_softmax": -1}, ["sampled_softmax is -1", "at least 0"]),
    ({"counted_tokens": -1}, ["counted_tokens is -1", "at least 0"]),
    (
        {"counted_tokens": 9, "architecture": "qwen3", "window_pattern": "L", "tie_embeddings": True},
        ["counted_tokens", "tie_embeddings false"],
    ),
    ({"sequence_len": 0}, ["sequence_len is 0"]),
]


@pytest.mark.parametrize(("model", "words"), MODEL_MISTAKES, ids=[str(model) for model, _ in MODEL_MISTAKES])
def test_model_keys(model, words, write_recipe, pretrained, refused):
    recipe = write_recipe(model=model, data={"tokenizer": str(pretrained / "tokenizer")})
    refused(["fit", "--config", recipe], *words)
    assert not (recipe.parent / "run" / "checkpoints").exists()


DATA_MISTAKES = [
    ({"pth": "x"}, ["'pth'", "did you mean 'path'"]),
    ({"vocab_size": 100}, ["vocab_size 100", "267"]),
    ({"vocab_size": 100_000}, ["vocab_size 100000", "too large", "'auto'"]),
    ({"vocab_size": "many"}, ["vocab_size", "many"]),
    ({"micro_batch_size": 0}, ["micro_batch_size is 0", "at least 1"]),
    ({"long_documents": "drop"}, ["long_documents", "drop", "split"]),
    ({"path": "no/such/folder"}, ["no/such/folder", "folder"]),
    ({"tokenizer": "no/such/tokenizer"}, ["no/such/tokenizer"]),
]


@pytest.mark.parametrize(("data", "words"), DATA_MISTAKES, ids=[str(data) for data, _ in DATA_MISTAKES])
def test_data_keys(data, words, write_recipe, refused):
    refused(["fit", "--config", write_recipe(data=data)], *words)


RUN_MISTAKES = [
    (["--nope", "3"], ["--nope"]),
    (["--model.dpeth", "3"], ["'dpeth'", "did you mean 'depth'"]),
    (["--trainer.max_stesp", "3"], ["--trainer.max_stesp"]),
    (["--trainer.max_steps", "0"], ["num_steps is 0"]),
    (["--trainer.devices", "0"], ["devices", "'0'"]),
    (["--trainer.accelerator", "abacus"], ["abacus"]),
    (["--trainer.precision", "bf16-mixed"], ["bf16-mixed", "compute_dtype"]),
    (["--trainer.accumulate_grad_batches", "4"], ["accumulate_grad_batches", "tokens_per_step"]),
    (["--compute_dtype", "half"], ["'half'", "bfloat16"]),
    (["--log_every", "0"], ["log_every is 0"]),
    (["--checkpoint_every", "-1"], ["checkpoint_every is -1"]),
    (["--ckpt_path", "no/such.ckpt"], ["no/such.ckpt"]),
    (["--run_dir", __file__], ["run_dir", "is a file"]),
    (["--trainer.max_epochs", "1"], ["max_epochs", "model.num_steps"]),
    (["--trainer.limit_train_batches", "2"], ["limit_train_batches", "model.num_steps"]),
    (["--trainer.overfit_batches", "1"], ["overfit_batches"]),
    (["--trainer.limit_val_batches", "0.5"], ["limit_val_batches", "use an integer"]),
    (["--trainer.devices", "-1"], ["'-1'"]),
    (["--trainer.devices", "two"], ["'two'"]),
    (["--trainer.strategy", "fsdp"], ["fsdp"]),
    (["--trainer.max_time", "soon"], ["soon"]),
    (["--trainer.logger", "WandbLogger"], ["wandb"]),
    (["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor", "val_loss"], ["'val_loss'", "'val_bpb'"]),
    (["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor", "loss"], ["'loss'", "'val_bpb'"]),
    (["--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs", "0.01"], ["EMAWeightAveraging"]),
    (
        ["--trainer.callbacks+=GradientAccumulationScheduler", "--trainer.callbacks.scheduling", "{0: 2}"],
        ["tokens_per_step"],
    ),
    (["--trainer.callbacks+=BatchSizeFinder"], ["micro_batch_size"]),
    (["--trainer.callbacks+=Timer", "--trainer.callbacks.duration", "00:00:00:01"], ["callbacks"]),
    (["--seed_everything", "-3"], ["-3"]),
    (["--model.compile", "maybe"], ["expected bool or 'auto'", "'maybe'"]),
    (["--data.path", "[" * 3000], ["too"]),
    (["--run_dri", "x"], ["did you mean --run_dir?"]),
    (["--dat.path", "x"], ["did you mean --data.path?"]),
    (["--depth", "12"], ["did you mean --model.depth?"]),
    (["--trainer.devics", "2"], ["did you mean --trainer.devices?"]),
    (["recipes/X.yaml"], ["recipe recipes/X.yaml does not exist"]),
]


@pytest.mark.parametrize(("options", "words"), RUN_MISTAKES, ids=[" ".join(options) for options, _ in RUN_MISTAKES])
def test_run_options(options, words, write_recipe, pretrained, refused):
    recipe = write_recipe(data={"tokenizer": str(pretrained / "tokenizer")})
    refused(["fit", "--config", recipe, *options], *words)


def test_recipes_that_cannot_be_read(tmp_path, write_recipe, refused):
    refused(["fit", "--config", tmp_path / "none.yaml"], "none.yaml")
    refused(["fit"], "--config")
    refused(["fit", "--config", write_recipe(nope=3)], "'nope'")
    (tmp_path / "broken.yaml").write_text("model: [", encoding="utf-8")
    refused(["fit", "--config", tmp_path / "broken.yaml"], "broken.yaml, line 1 is not valid YAML")
    refused(["fit", "--config", write_recipe(), "--model.class_path", "nanochat_lit.training.Nope"], "Nope")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"model:\n  depth: 2\n bad: [1\n", "recipe.yaml, line 3 is not valid YAML"),
        (b"- a\n- b\n", "has no keys"),
        (b"\x80\x81\xff", "is not text in UTF-8"),
        ("model: {}\n".encode("utf-16"), "is not text in UTF-8"),
    ],
)
def test_files_that_are_no_recipes(content, words, tmp_path, refused):
    (tmp_path / "recipe.yaml").write_bytes(content)
    refused(["fit", "--config", tmp_path / "recipe.yaml"], words)
    refused(["fit", f"--config={tmp_path / 'recipe.yaml'}"], words)


def test_a_recipe_of_windows(write_recipe, capsys):
    """With a byte order mark and its newlines it is the same recipe."""
    recipe = write_recipe()
    assert cli.main(["fit", "--config", str(recipe), "--print_config"]) == 0
    expected = capsys.readouterr().out
    recipe.write_bytes(b"\xef\xbb\xbf" + recipe.read_bytes().replace(b"\n", b"\r\n"))
    assert cli.main(["fit", "--config", str(recipe), "--print_config"]) == 0
    assert capsys.readouterr().out == expected


def test_recipes_that_are_nested_deeply(tmp_path, refused):
    (tmp_path / "deep.yaml").write_text("model: " + "[" * 3000)
    refused(["fit", "--config", tmp_path / "deep.yaml"], "deep.yaml", "nested too deeply")
    refused(["sweep", tmp_path / "deep.yaml"], "deep.yaml", "nested too deeply")


ABSURD = [
    {"n_layer": 1_000_000}, {"sequence_len": 10**9}, {"n_embd": "wide"}, {"vocab_size": 1e4}, {"n_head": None},
    {"n_kv_head": True}, {"window_pattern": ["S"]}, {"window_pattern": 7}, {"bigram_factor": 10**6},
]  # fmt: skip


@pytest.mark.parametrize("fields", ABSURD, ids=str)
def test_an_export_with_absurd_dimensions(fields, pretrained, tmp_path, refused):
    folder = shutil.copytree(pretrained / "export", tmp_path / "export")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    refused(["chat", "--model", folder, "-p", "hi"], next(iter(fields)))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_weights_of_another_type(dtype, pretrained, tmp_path, refused):
    folder = shutil.copytree(pretrained / "export", tmp_path / "export")
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, folder / "model.safetensors")
    refused(["chat", "--model", folder, "-p", "hi"], "floating-point", str(dtype))


def test_a_json_file_that_is_nested_deeply(pretrained, tmp_path, refused):
    folder = shutil.copytree(pretrained / "export", tmp_path / "export")
    (folder / "config.json").write_text("[" * 100_000)
    refused(["chat", "--model", folder, "-p", "hi"], "config.json", "nested too deeply")


def test_moments_that_cannot_be_read(pretrained, sft_recipe, tmp_path, refused):
    half = tmp_path / "half.ckpt"
    half.write_bytes((pretrained / "checkpoints" / "last.ckpt").read_bytes()[:5000])
    for path in (half, tmp_path, tmp_path / "none.ckpt"):
        refused(["fit", "--config", sft_recipe, "--model.optimizer_from", path], path.name)


def test_an_empty_folder(tmp_path, write_recipe, refused):
    (tmp_path / "empty").mkdir()
    refused(["fit", "--config", write_recipe(data={"path": str(tmp_path / "empty")})], "empty", ".parquet")
    (tmp_path / "empty" / "a.jsonl").write_text("", encoding="utf-8")
    refused(["fit", "--config", write_recipe(data={"path": str(tmp_path / "empty")})], "empty")


def write_parquet(path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": [f"document {i} of some length" for i in range(2000)]}), path)


@pytest.mark.parametrize("damage", ["cut", "overwritten", "in the middle"])
def test_a_corrupt_parquet_file_is_named_before_training(damage, tmp_path, write_recipe, refused):
    folder = tmp_path / "shards"
    folder.mkdir()
    for name in ("shard_0.parquet", "shard_1.parquet", "shard_2.parquet"):
        write_parquet(folder / name)
    path = folder / "shard_1.parquet"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "overwritten":
        content[:] = b"<html>404</html>" * (len(content) // 16)
    else:  # the footer is whole, the pages are not
        content[100:2000] = bytes(1900)
    path.write_bytes(content)
    recipe = write_recipe(data={"path": str(folder)})
    refused(["fit", "--config", recipe], "shard_1.parquet")
    assert not (recipe.parent / "run" / "tokenizer").exists()


def test_a_parquet_file_without_text(tmp_path, write_recipe, refused):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"body": ["a", "b"]}), tmp_path / "other.parquet")
    refused(["fit", "--config", write_recipe(data={"path": str(tmp_path / "other.parquet")})], "other.parquet", "text")


def test_a_malformed_conversation_is_named(tmp_path, sft_recipe, refused):
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 10
    rows[3] = {"messages": [{"role": "wizard", "content": "a"}]}
    (tmp_path / "bad.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    refused(["fit", "--config", sft_recipe, "--data.path", tmp_path / "bad.jsonl"], "bad.jsonl", "wizard")


def test_the_tokenizer_of_an_earlier_run_is_not_taken_silently(pretrained, write_recipe, refused, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(pretrained / "tokenizer", run / "tokenizer")
    refused(["fit", "--config", write_recipe(data={"vocab_size": 400}), "--run_dir", run], "512", "400", "run_dir")


def test_checkpoints_of_other_things(pretrained, write_recipe, tmp_path, refused):
    recipe = write_recipe(data={"tokenizer": str(pretrained / "tokenizer")})
    checkpoint = pretrained / "checkpoints" / "last.ckpt"
    resume = ["fit", "--config", recipe, "--ckpt_path"]
    refused(
        [*resume, checkpoint, "--model.n_embd", "64", "--model.n_head", "2"],
        "n_embd is 64",
        "cannot change within a run",
    )
    refused([*resume, recipe], "recipe.yaml", "not a checkpoint")
    (tmp_path / "cut.ckpt").write_bytes(checkpoint.read_bytes()[:5000])
    refused([*resume, tmp_path / "cut.ckpt"], "cut.ckpt", "damaged")
    torch.save({"state_dict": {}, "epoch": 1}, tmp_path / "foreign.ckpt")
    refused([*resume, tmp_path / "foreign.ckpt"], "foreign.ckpt", "not written by nanochat-lit")
    # as many tokens, but other ones
    text = "\n".join(json.dumps({"text": f"wholly {word} different {i}"}) for i, word in enumerate(["qx", "zv"] * 200))
    (tmp_path / "other.jsonl").write_text(text, encoding="utf-8")
    other = ["tokenizer", "train", "--path", tmp_path / "other.jsonl", "--out", tmp_path / "tok", "--vocab_size", "300"]
    assert cli.main(list(map(str, other))) == 0
    refused(
        [*resume, checkpoint, "--data.tokenizer", tmp_path / "tok"],
        "differs from this run",
        "vocab_size 512 instead of 300",
    )


def test_validate_needs_a_checkpoint(write_recipe, refused):
    refused(["validate", "--config", write_recipe()], "--ckpt_path")


def test_a_base_that_is_no_export(pretrained, sft_recipe, tmp_path, refused):
    fit = ["fit", "--config", sft_recipe, "--model.base"]
    refused([*fit, tmp_path / "none"], "none", "does not exist")
    mixed = shutil.copytree(pretrained / "export", tmp_path / "mixed")
    config = json.loads((mixed / "config.json").read_text())
    (mixed / "config.json").write_text(json.dumps(config | {"n_layer": 3}))
    refused([*fit, mixed], "model.safetensors", "config.json")
    (mixed / "model.safetensors").unlink()
    refused([*fit, mixed], "mixed", "model.safetensors")


def test_moments_of_another_model(pretrained, sft_recipe, write_recipe, refused):
    recipe = write_recipe(model={"n_embd": 64}, data={"tokenizer": str(pretrained / "tokenizer")})
    assert cli.main(["fit", "--config", str(recipe), "--trainer.max_steps", "1"]) == 0
    other = recipe.parent / "run" / "checkpoints" / "last.ckpt"
    refused(
        ["fit", "--config", sft_recipe, "--model.optimizer_from", other], "another model", "n_embd 64 instead of 32"
    )
    damaged = recipe.parent / "damaged.ckpt"
    damaged.write_bytes(other.read_bytes()[:1000])
    refused(["fit", "--config", sft_recipe, "--model.optimizer_from", damaged], "damaged.ckpt", "is damaged")


def test_sft_with_another_tokenizer(sft_recipe, conversation_file, tmp_path, refused):
    text = "\n".join(json.dumps({"text": f"wholly {word} different {i}"}) for i, word in enumerate(["qx", "zv"] * 200))
    (tmp_path / "other.jsonl").write_text(text, encoding="utf-8")
    train = ["tokenizer", "train", "--path", tmp_path / "other.jsonl", "--out", tmp_path / "tok", "--vocab_size", "300"]
    assert cli.main(list(map(str, train))) == 0
    refused(["fit", "--config", sft_recipe, "--data.tokenizer", tmp_path / "tok"], "tok", "remove data.tokenizer")


def test_prompts_and_exports_of_chat(pretrained, tmp_path, refused):
    export = pretrained / "export"
    refused(["chat", "--model", export, "-p", "word " * 500], "64")
    refused(["chat", "--model", tmp_path / "none", "-p", "hi"], "none")
    refused(["chat", "--model", tmp_path, "-p", "hi"], "not a complete export", "run folder")
    refused(["evaluate", "bpb", "--model", export, "--data", tmp_path / "none", "--json"], "none")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_missing_gpus_are_told_in_one_line(refused):
    error = refused(["fit", "--config", "recipes/gpt2_speedrun.yaml"], "8 GPU(s)", "--trainer.accelerator cpu")
    assert len(error.splitlines()) == 1


def test_the_recipe_of_the_toy_is_good(write_recipe):
    """The mistakes above are the only ones in their recipes."""
    recipe = yaml.safe_load(write_recipe().read_text("utf-8"))
    assert recipe["model"]["init_args"]["tokens_per_step"] % (4 * 64) == 0
