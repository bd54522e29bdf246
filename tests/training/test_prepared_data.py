"""fit on prepared shards: the losses of the text, the tokenizer of the shards, and a clear word when they do not fit."""

from nanochat_lit import cli
from nanochat_lit.training.run_records import read_metrics


def test_fit_reads_prepared_shards_as_text(write_recipe, text_folder, pretrained, tmp_path, capsys):
    prepared, run = tmp_path / "prepared", tmp_path / "run"
    options = ["--data", str(text_folder), "--tokenizer", str(pretrained / "tokenizer"), "--out", str(prepared)]
    assert cli.main(["data", "prepare", *options]) == 0
    recipe = write_recipe({}, {"path": str(prepared), "vocab_size": "auto"}, run_dir=str(run))
    assert cli.main(["fit", "--config", str(recipe)]) == 0
    assert "training the tokenizer" not in capsys.readouterr().err
    expected, found = (read_metrics(folder / "metrics.csv") for folder in (pretrained, run))
    for step, row in expected.items():
        for name in ("train_loss", "val_bpb", "data_lost"):
            assert found[step].get(name) == row.get(name), (step, name)
    assert (run / "tokenizer" / "tokenizer.model").read_bytes() == (
        pretrained / "tokenizer" / "tokenizer.model"
    ).read_bytes()

    # another tokenizer, another vocabulary, and a shard that lost its end
    other = tmp_path / "other"
    train = ["tokenizer", "train", "--path", str(text_folder), "--out", str(other), "--vocab_size=400"]
    assert cli.main(train) == 0
    for data, message in (
        ({"tokenizer": str(other)}, "was prepared with another tokenizer"),
        ({"vocab_size": 600}, "has 512 tokens, but vocab_size is 600"),
    ):
        recipe = write_recipe({}, {"path": str(prepared), "vocab_size": "auto", **data})
        assert cli.main(["fit", "--config", str(recipe)]) == 2
        assert message in capsys.readouterr().err
    shard = prepared / "a.tokens"
    shard.write_bytes(shard.read_bytes()[:-4])
    assert cli.main(["fit", "--config", str(recipe)]) == 2
    assert "a.tokens' is incomplete" in capsys.readouterr().err
