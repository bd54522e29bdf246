"""Fine-tuning on several sources: what is read how often, losses and token shares by source, rates from the base."""

import json
import math
import random
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
import yaml

from nanochat_lit import cli, load_export
from nanochat_lit.common.paths import read_json
from nanochat_lit.data.source import SplitSource
from nanochat_lit.data.stream import ChatStream
from nanochat_lit.model import IGNORE_INDEX
from nanochat_lit.tasks.base import TaskMixture
from nanochat_lit.tokenizer import render_conversation
from nanochat_lit.training import MixtureDataModule, SFTModule
from nanochat_lit.training.continued import inherited
from nanochat_lit.training.run_records import read_metrics
from nanochat_lit.training.sft import TokenAccounts


def talks(count, word):
    """Conversations of different lengths."""
    rng = random.Random(word)
    return [
        {
            "messages": [
                {"role": "user", "content": f"say {word} {number}"},
                {"role": "assistant", "content": " ".join([word] * rng.randint(1, 6))},
            ]
        }
        for number in range(count)
    ]


def test_shares_and_losses_are_those_of_a_count_by_hand(tokenizer):
    """Every trained token of one epoch of the mixture, conversation by conversation; a token's id stands for its loss."""
    train = TaskMixture({"cats": talks(20, "cat"), "dogs": talks(10, "dog")}, {"dogs": 3})
    stream = ChatStream(
        conversations=lambda: iter(train), tokenizer=tokenizer, sequence_len=48, micro_batch_size=2, split="all",
        names=["dogs", "cats"],
    )  # fmt: skip
    accounts, rows = TokenAccounts(["dogs", "cats"], tokenizer.bos_id), []
    for batch in stream:
        assert torch.equal(batch["sources"] == 0, batch["targets"] == IGNORE_INDEX)
        accounts.add(batch, batch["targets"].clamp(min=0).float())
        rows += [set(row.unique().tolist()) - {0} for row in batch["sources"]]
    assert {1, 2} in rows, "no row holds both"
    counts, losses = dict.fromkeys(("dogs", "cats"), 0), dict.fromkeys(("dogs", "cats"), 0)
    for conversation in train:
        token_ids, loss_mask = render_conversation(tokenizer, conversation)
        counts[conversation["source"]] += sum(loss_mask)
        losses[conversation["source"]] += sum(own for own, mask in zip(token_ids, loss_mask, strict=True) if mask)
    shares = accounts.figures(accounts.pop().tolist())
    assert shares["share/dogs"] == pytest.approx(counts["dogs"] / sum(counts.values()))
    for name in ("dogs", "cats"):
        assert shares[f"train_loss/{name}"] == pytest.approx(losses[name] / counts[name])
    used = stream.counts
    positions = used.rows * 48
    assert shares["tokens_trained"] == pytest.approx(sum(counts.values()) / positions)
    # a padded row's last input is padding too, one place of the padding fewer than in the row of T + 1
    padded = round(shares["tokens_padding"] * positions)
    assert used.padding - used.rows <= padded <= used.padding
    assert sum(shares[f"tokens_{kind}"] for kind in ("trained", "read", "padding")) == pytest.approx(1)


def test_a_source_without_a_token_has_no_loss(tokenizer):
    """And one whose loss is no number does not spoil the others'."""
    accounts = TokenAccounts(["cats", "dogs", "owls"], tokenizer.bos_id)
    inputs = torch.full((1, 4), tokenizer.bos_id + 1)
    batch = {"inputs": inputs, "targets": inputs, "sources": torch.tensor([[1, 1, 3, 3]])}
    accounts.add(batch, torch.tensor([[2.0, 4.0, 1.0, math.nan]]))
    figures = accounts.figures(accounts.pop().tolist())
    assert figures["train_loss/cats"] == 3.0
    assert math.isnan(figures["train_loss/owls"])
    assert "train_loss/dogs" not in figures


def test_sources_read_their_own_splits():
    source = SplitSource(["a", "b", "c", "d"], ["x", "y"], seed=1)
    assert list(source.iterate("val")) == ["x", "y"]
    first, second = list(source.iterate("train")), list(source.iterate("train", epoch=1))
    assert sorted(first) == sorted(second) == ["a", "b", "c", "d"]
    assert first != second
    shares = [list(source.iterate("train", 0, rank, 3)) for rank in range(3)]
    assert sorted(item for share in shares for item in share) == ["a", "b", "c", "d"]


def test_an_epoch_is_counted_or_inferred(tokenizer, monkeypatch):
    data = MixtureDataModule({"cats": talks(400, "cat")}, {"cats": talks(5, "cat")}, {"cats": 2}, micro_batch_size=2)
    data.tokenizer = tokenizer
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(config=SimpleNamespace(sequence_len=64)))
    exact = data.epoch_tokens()
    rendered = sum(len(render_conversation(tokenizer, talk)[0]) for talk in data.train_mixture)
    assert rendered < exact < 1.1 * rendered
    monkeypatch.setattr("nanochat_lit.training.sft.COUNTED_CONVERSATIONS", 200)
    assert data.epoch_tokens() == pytest.approx(exact, rel=0.05)


@pytest.fixture
def mixture_recipe(sft_recipe, tmp_path):
    """The toy's fine-tuning on two sources, one of which has no held-out conversations."""
    recipe = yaml.safe_load(sft_recipe.read_text("utf-8"))
    tasks = {}
    for name, count in (("cats", 60), ("dogs", 30), ("held_out", 12)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, talks(count, name[:3]))), encoding="utf-8")
        load = "nanochat_lit.tasks.conversations.FileConversations"
        tasks[name] = {"class_path": load, "init_args": {"path": str(path)}}
    recipe["data"] = {
        "class_path": "nanochat_lit.training.MixtureDataModule",
        "init_args": {
            "train": {"cats": tasks["cats"], "dogs": tasks["dogs"]},
            "val": {"cats": tasks["held_out"]},
            "repeats": {"dogs": 2},
            "micro_batch_size": 4,
            "buffer_size": 10,
        },
    }
    sft_recipe.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return sft_recipe


def test_a_run_reports_by_source(mixture_recipe, tmp_path):
    assert cli.main(["fit", "--config", str(mixture_recipe)]) == 0
    metrics = read_metrics(tmp_path / "sft" / "metrics.csv")
    for step in (1, 2, 3):
        row = metrics[step]
        assert row["share/cats"] + row["share/dogs"] == pytest.approx(1)
        assert row["tokens_trained"] + row["tokens_read"] + row["tokens_padding"] == pytest.approx(1)
    assert metrics[3]["val_bpb/cats"] == metrics[3]["val_bpb"] < metrics[0]["val_bpb"]
    assert "val_bpb/dogs" not in metrics[3]


def test_losses_by_source_are_those_of_the_weights_before_the_step(mixture_recipe, tmp_path, pretrained, monkeypatch):
    """Against every token's loss by the base's export; two micro-batches a step."""
    batches, train = [], SFTModule.training_step
    monkeypatch.setattr(
        SFTModule, "training_step", lambda self, batch, index: batches.append(batch) or train(self, batch, index)
    )
    options = ["--model.num_steps", "1", "--model.tokens_per_step", "1024", "--data.micro_batch_size", "4"]
    assert cli.main(["fit", "--config", str(mixture_recipe), *options]) == 0
    assert len(batches) > 1, "nothing was accumulated"
    model, _ = load_export(pretrained / "export", device="cpu", compute_dtype="float32")
    with torch.no_grad():
        losses = torch.cat([model(batch["inputs"], batch["targets"], reduction="none") for batch in batches])
    sources = torch.cat([batch["sources"] for batch in batches])
    row = read_metrics(tmp_path / "sft" / "metrics.csv")[1]
    for number, name in enumerate(("cats", "dogs"), start=1):
        assert row[f"train_loss/{name}"] == pytest.approx(losses[sources == number].mean().item(), rel=1e-5)
    assert row["train_loss/cats"] != pytest.approx(row["train_loss/dogs"], rel=0.001)


def test_it_continues_bit_for_bit(mixture_recipe, tmp_path):
    options = ["--config", str(mixture_recipe), "--model.num_steps", "4", "--log_every", "3"]
    assert cli.main(["fit", *options, "--checkpoint_every", "2"]) == 0
    whole = read_metrics(tmp_path / "sft" / "metrics.csv")
    (tmp_path / "sft" / "checkpoints" / "step000004.ckpt").unlink()
    (tmp_path / "sft" / "checkpoints" / "last.ckpt").unlink()
    assert cli.main(["fit", *options, "--ckpt_path", "last"]) == 0
    found = read_metrics(tmp_path / "sft" / "metrics.csv")
    names = (
        "train_loss",
        "train_loss/cats",
        "train_loss/dogs",
        "share/dogs",
        "tokens_padding",
        "val_bpb",
        "val_bpb/cats",
    )
    assert [{n: found[s][n] for n in names if n in found[s]} for s in found] == [
        {n: whole[s][n] for n in names if n in whole[s]} for s in whole
    ]


def test_rates_and_batch_are_inherited_or_overridden(mixture_recipe, pretrained, tmp_path):
    base = read_json(pretrained / "export" / "provenance.json")["hyper_parameters"]
    assert inherited(pretrained / "export", {"matrix_lr": None, "embedding_lr": 7.0, "tokens_per_step": None}) == {
        "matrix_lr": base["matrix_lr"], "embedding_lr": 7.0, "tokens_per_step": 512,
    }  # fmt: skip
    options = ["--model.tokens_per_step", "null", "--model.matrix_lr", "0.01", "--model.num_steps", "1"]
    assert cli.main(["fit", "--config", str(mixture_recipe), *options]) == 0
    made = read_json(tmp_path / "sft" / "export" / "provenance.json")["hyper_parameters"]
    assert made == {**base, "matrix_lr": 0.01}, "shares of later stages mean the rates of pretraining"
    plan = read_json(tmp_path / "sft" / "plan.json")
    assert plan["tokens_per_step"] == 512


def test_an_export_with_odd_rates_is_refused(mixture_recipe, pretrained, tmp_path, capsys):
    import shutil

    base = shutil.copytree(pretrained / "export", tmp_path / "base")
    provenance = read_json(base / "provenance.json")
    provenance["hyper_parameters"]["matrix_lr"] = "high"
    (base / "provenance.json").write_text(json.dumps(provenance), encoding="utf-8")
    assert cli.main(["fit", "--config", str(mixture_recipe), "--model.base", str(base)]) == 2
    assert "matrix_lr is 'high'; set it to a positive number" in capsys.readouterr().err


def test_workers_read_the_mixture_too(tokenizer):
    """Conversations come out of the stream whoever reads; the batches of two readers hold every source."""
    source = SplitSource(TaskMixture({"cats": talks(30, "cat"), "dogs": talks(30, "dog")}), talks(2, "cat"))
    for rank in range(2):
        stream = ChatStream(
            conversations=source, tokenizer=tokenizer, sequence_len=48, micro_batch_size=2, rank=rank, world_size=2,
            buffer_size=10, names=["cats", "dogs"],
        )  # fmt: skip
        seen = torch.cat([batch["sources"].flatten() for batch in islice(stream, 10)])
        assert set(seen.tolist()) == {0, 1, 2}
