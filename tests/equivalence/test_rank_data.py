"""What several ranks read: every document once, none starved; what they measure: the figure of one rank, exactly."""

import json
import math
from itertools import islice
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest
import torch

from nanochat_lit.common.errors import UserError
from nanochat_lit.data.shards import FileSource
from nanochat_lit.data.stream import PretrainStream
from nanochat_lit.evaluation.bpb import BitsPerByte
from nanochat_lit.training import ChatDataModule, TextDataModule, datamodules, pretrain, sft


@pytest.fixture
def as_rank(monkeypatch):
    """Pretend to be a rank of several, as far as the data can see."""

    def pretend(rank, world_size):
        for module in (datamodules, pretrain, sft):
            monkeypatch.setattr(module, "rank", lambda: rank)
            monkeypatch.setattr(module, "world_size", lambda: world_size)

    return pretend


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_fewer_row_groups_than_ranks_starve_nobody(tmp_path, world_size, tokenizer):
    """A shard of one row group: its rows, not its row groups, go to the ranks."""
    for name in ("a", "b"):
        texts = [f"{name} document number {number}" for number in range(40)]
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / f"{name}.parquet", row_group_size=40)
    shares = [list(FileSource(tmp_path).iterate("train", 0, rank, world_size)) for rank in range(world_size)]
    assert sorted(text for share in shares for text in share) == sorted(FileSource(tmp_path).documents("train"))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for rank in range(world_size):
        stream = PretrainStream(
            texts=tmp_path, tokenizer=tokenizer, sequence_len=32, micro_batch_size=2, rank=rank, world_size=world_size
        )
        assert len(list(islice(stream, 30))) == 30, "the stream goes on over the epochs"


def measure(batches, model, tokenizer, metric):
    for batch in batches:
        losses = model(batch["inputs"], batch["targets"], reduction="none")
        metric.update(losses, batch["targets"], tokenizer.token_bytes())


def text_data(folder, tokenizer):
    rows = [json.dumps({"text": f"what is {n} times {n % 7}? it is {n * (n % 7)}. " * (n % 5 + 1)}) for n in range(30)]
    (folder / "a.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (folder / "b.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return TextDataModule(str(folder), micro_batch_size=4, val_docs=27)


def chat_data(folder, tokenizer):
    def turns(n):
        return [{"role": "user", "content": f"{n} plus 1?"}, {"role": "assistant", "content": f"it is {n + 1}"}]

    rows = [json.dumps({"messages": turns(n)}) for n in range(90)]
    (folder / "a.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (folder / "b.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return ChatDataModule(str(folder), micro_batch_size=2, val_rows=10)


@pytest.mark.parametrize("make", [text_data, chat_data])
@pytest.mark.parametrize("world_size", [2, 3, 16])
def test_val_bpb_of_many_ranks_is_that_of_one(make, world_size, tmp_path, tokenizer, random_model, as_rank):
    """The sums of all ranks, as the metric adds them, are those of one rank to the last unit; some ranks have nothing."""
    data, model = make(tmp_path, tokenizer), random_model()
    data.tokenizer, data.trainer = tokenizer, SimpleNamespace(lightning_module=SimpleNamespace(config=model.config))
    as_rank(0, 1)
    wanted = BitsPerByte()
    measure(data.val_dataloader(), model, tokenizer, wanted)
    total, num_batches = BitsPerByte(), []
    for rank in range(world_size):
        as_rank(rank, world_size)
        batches = list(data.val_dataloader())
        num_batches.append(len(batches))
        part = BitsPerByte()
        measure(batches, model, tokenizer, part)
        total.units += part.units
        total.num_bytes += part.num_bytes
    assert (int(total.units), int(total.num_bytes)) == (int(wanted.units), int(wanted.num_bytes))
    assert not math.isnan(float(wanted.compute()))
    uneven = sum(num_batches) % world_size != 0
    assert len(set(num_batches)) == (2 if uneven else 1)
    assert uneven or world_size == 2


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
@pytest.mark.parametrize(
    ("world_size", "num_workers", "fits"), [(4, 0, True), (5, 0, False), (2, 2, True), (2, 3, False)]
)
def test_fewer_documents_than_readers(world_size, num_workers, fits, tmp_path, tokenizer, as_rank):
    for name in ("a", "b"):
        rows = [json.dumps({"text": f"document {n}"}) for n in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    data = TextDataModule(str(tmp_path), num_workers=num_workers)
    data.tokenizer = tokenizer
    data.trainer = SimpleNamespace(
        lightning_module=SimpleNamespace(config=SimpleNamespace(sequence_len=32), device=torch.device("cpu"))
    )
    for rank in range(world_size):
        as_rank(rank, world_size)
        if fits:
            data.train_dataloader()
        else:
            with pytest.raises(UserError, match=rf"has 4 training item\(s\), too few for {world_size} rank"):
                data.train_dataloader()
