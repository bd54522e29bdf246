"""Sources beside files and the hub's files: streams of the `datasets` package, the tiny world, mixtures in a run."""

import itertools
import random
import resource
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from nanochat_lit import cli
from nanochat_lit.common.errors import UserError
from nanochat_lit.data import hub_files, records
from nanochat_lit.data.hub_files import HubStream
from nanochat_lit.data.shards import TinyWorld
from nanochat_lit.data.stream import PretrainStream
from nanochat_lit.training.run_records import read_metrics


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


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_rows_of_a_stream_that_are_no_text_are_passed_over(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(records, "MAX_DOC_CHARS", 100_000)
    binary = b"\x00\x01\x02PNG\x1a" * 300
    rows = [b"fine", binary, None, "ünï".encode(), b"x" * 100_001, b"", b"\xff\xfe", binary, b"end"]
    pq.write_table(pa.table({"text": pa.array(rows, pa.binary())}), tmp_path / "a.parquet")
    source = HubStream("parquet", data_files=str(tmp_path / "a.parquet"))
    assert list(source.documents()) == ["fine", "ünï", "end"]
    assert [message.split(";")[0] for message in caplog.messages] == [
        "parquet (train), row 1: 'text' looks like binary data, not text",
        "parquet (train), row 4: 'text' is longer than 100,000 characters",
        "parquet (train), row 6: 'text' is not UTF-8 text",
    ]
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"parquet \(train\), row 0: 'text' is int, expected a string"):
        list(HubStream("parquet", data_files=str(tmp_path / "b.parquet")).documents())
    cut = tmp_path / "cut.parquet"
    pq.write_table(pa.table({"text": [f"{number}" * 500 for number in range(9000)]}), cut, row_group_size=1000)
    data = bytearray(cut.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = b"?" * 3000
    cut.write_bytes(data)
    with pytest.raises(UserError, match=r"parquet \(train\) cannot be read on from row [1-9]\d+ \(\w+: "):
        list(HubStream("parquet", data_files=str(cut)).documents())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_rows_of_100_megabytes_in_a_stream(tmp_path, monkeypatch):
    """More of them than fit: they never come into the buffer that the order is drawn from."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    fine = [f"text {number}" for number in range(60)]
    huge = "word " * 20_000_000
    texts = [text for number, text in enumerate(fine) for text in ((huge, text) if number % 6 == 0 else (text,))]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=4)
    source = HubStream("parquet", data_files=str(tmp_path / "a.parquet"), val_rows=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sorted(source.iterate("train")) == sorted(fine)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 * 2**20, "KiB; the ten have 1 GB"


def test_the_buffer_of_a_stream_is_bounded_by_characters_too(stream, monkeypatch):
    source = stream()
    monkeypatch.setattr(hub_files, "BUFFER_CHARS", 60)
    read = []
    texts = (read.append(text) or text for text in (f"{number:010}" for number in range(50)))
    shuffled = []
    for text in source._shuffled(texts, random.Random(0)):
        shuffled.append(text)
        assert len(read) - len(shuffled) <= 6
    assert sorted(shuffled) == read != shuffled


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_validation_of_a_stream_is_pinned_by_its_content(stream, tmp_path):
    before = stream().validation()
    assert list(before) == ["parquet (train, first 10 rows)"]
    texts = [f"text {number}" for number in range(200)]
    pq.write_table(pa.table({"body": texts[:150]}), tmp_path / "a.parquet")
    assert stream().validation() == before
    texts[9] = "another"
    pq.write_table(pa.table({"body": texts}), tmp_path / "a.parquet")
    assert stream().validation().keys() == before.keys()
    assert stream().validation() != before


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_stream_in_loader_workers_is_the_whole_stream(stream):
    """`datasets` deals out its files to the workers by itself, which with one file would leave the second nothing."""
    shares = DataLoader(_Share(stream()), batch_size=None, num_workers=2)
    assert sorted(shares) == sorted(stream().documents("train"))


class _Share(IterableDataset):
    """What a worker reads of the first epoch."""

    def __init__(self, source):
        self.source = source

    def __iter__(self):
        worker = get_worker_info()
        return self.source.iterate("train", 0, worker.id, worker.num_workers)


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
    world = {"class_path": "nanochat_lit.data.shards.TinyWorld", "init_args": {"num_documents": 200}}
    mixture = {"sources": {"files": files, "world": world}, "weights": {"files": 0.3, "world": 0.7}}
    source = {"class_path": "nanochat_lit.data.source.Mixture", "init_args": mixture}
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
    assert "data.path and data.source are both null; set one of them" in capsys.readouterr().err
