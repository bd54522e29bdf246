"""Sources beside files and the hub's files: streams of the `datasets` package, the tiny world, mixtures in a run."""

import itertools
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat_lit import cli
from nanochat_lit.common.errors import UserError
from nanochat_lit.data.hub_stream import HubStream
from nanochat_lit.data.pretrain_stream import PretrainStream
from nanochat_lit.data.tiny_world_source import TinyWorld
from nanochat_lit.training.metrics_file import read_metrics


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def stream(tmp_path, monkeypatch):
    """A data set in parquet, read by `datasets` without a network."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    texts = [f"text {number}" for number in range(200)]
    texts[50] = None
    pq.write_table(pa.table({"body": texts}), tmp_path / "a.parquet", row_group_size=20)

    def make(**options):
        options = {"data_files": str(tmp_path / "a.parquet"), "text_column": "body", "val_rows": 10, **options}
        return HubStream("parquet", buffer_size=30, **options)

    return make


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_any_data_set_as_a_stream(stream, tokenizer):
    source = stream()
    source.check()
    wanted = {f"text {number}" for number in range(200)} - {"text 50"}
    val = list(source.documents("val"))
    assert val == [f"text {number}" for number in range(10)]
    assert list(source.documents("train")) == [f"text {n}" for n in range(10, 200) if n != 50]
    shares = [list(source.iterate("train", 0, rank, 3)) for rank in range(3)]
    assert sorted(itertools.chain(*shares)) == sorted(wanted - set(val))
    assert list(source.iterate("train", 1)) != list(source.iterate("train", 0))
    assert list(source.iterate("train", 1)) == list(stream().iterate("train", 1))
    with pytest.raises(UserError, match=r"no column 'text' \(columns: body\)"):
        next(stream(text_column="text").documents())
    with pytest.raises(UserError, match=r"parquet \(test\) cannot be read from the Hugging Face hub"):
        next(stream(split="test").documents())

    def batches(state=None, skip=0):
        rows = PretrainStream(texts=stream(), tokenizer=tokenizer, sequence_len=16, micro_batch_size=2, buffer_size=5)
        rows.load_state_dict(state)
        iterator = iter(rows)
        found = [next(iterator)["inputs"].tolist() for _ in range(30)]
        return found[skip:], rows.state_dict()

    first, state = batches()
    after, _ = batches(state)
    again, _ = batches(state)
    assert after == again != first


def test_the_tiny_world_is_written_when_it_is_needed(tmp_path):
    source = TinyWorld(100)
    with pytest.raises(UserError, match="no shards yet"):
        list(source.documents("train"))
    source.prepare()
    assert len(list(source.documents("train"))) == 100
    assert next(iter(source.validation())).startswith("shard_")
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "cache").rglob("*.parquet"))
    TinyWorld(100).prepare()
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "cache").rglob("*.parquet")) == before


def test_a_run_on_a_mixture_continues_bit_for_bit(write_recipe, text_folder, tmp_path):
    files = {"class_path": "nanochat_lit.data.shards.FileSource", "init_args": {"path": str(text_folder)}}
    world = {"class_path": "nanochat_lit.data.tiny_world_source.TinyWorld", "init_args": {"num_documents": 200}}
    mixture = {"sources": {"files": files, "world": world}, "weights": {"files": 0.3, "world": 0.7}}
    source = {"class_path": "nanochat_lit.data.mixture.Mixture", "init_args": mixture}
    recipe = write_recipe({"num_steps": 5, "eval_every": 0}, {"path": None, "source": source, "buffer_size": 20})
    assert cli.main(["fit", "--config", str(recipe), "--checkpoint_every", "1", "--keep_last", "9"]) == 0
    whole, run = recipe.parent / "run", tmp_path / "run"
    shutil.copytree(whole, run, ignore=shutil.ignore_patterns("checkpoints", "export"))
    (run / "checkpoints").mkdir()
    shutil.copy(whole / "checkpoints" / "step000002.ckpt", run / "checkpoints")
    assert cli.main(["fit", "--config", str(recipe), "--run_dir", str(run), "--ckpt_path", "last"]) == 0
    ours, theirs = read_metrics(run / "metrics.csv"), read_metrics(whole / "metrics.csv")
    assert [ours[step]["train_loss"] for step in range(1, 6)] == [theirs[step]["train_loss"] for step in range(1, 6)]


def test_path_and_source_exclude_each_other(write_recipe, capsys):
    recipe = write_recipe(None, {"path": None})
    assert cli.main(["fit", "--config", str(recipe)]) == 2
    assert "data.path and data.source are both null; give one of them" in capsys.readouterr().err
