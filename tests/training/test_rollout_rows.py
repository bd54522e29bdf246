"""Rollouts as rows, and the means that are logged of them."""

import pytest
import torch

from nanochat_lit.common.hardware import padded_length
from nanochat_lit.engine.rollout import Rollout
from nanochat_lit.training.rollout_data import ROW_UNIT, RolloutFigures, RolloutLoader, rollout_rows, without_padding


def test_a_target_stands_where_its_token_is_predicted():
    rollouts = [
        Rollout(token_ids=[7, 8, 9], mask=[1, 0, 1], has_ended=True),
        Rollout(token_ids=[5], mask=[1], has_ended=False),
    ]
    rows = rollout_rows([[1, 2], [1, 3, 4]], rollouts, 6, pad_id=0)
    assert rows["inputs"].tolist() == [[1, 2, 7, 8, 0, 0], [1, 3, 4, 0, 0, 0]]
    assert rows["targets"].tolist() == [[-1, 7, -1, 9, -1, -1], [-1, -1, 5, -1, -1, -1]]


def test_the_longest_row_fits_exactly():
    rows = rollout_rows([[1, 2]], [Rollout(token_ids=[7, 8, 9], mask=[1, 1, 1], has_ended=True)], 4, pad_id=0)
    assert rows["inputs"].tolist() == [[1, 2, 7, 8]]
    assert rows["targets"].tolist() == [[-1, 7, 8, 9]]


def test_columns_that_nobody_learns_from_are_cut():
    long = ROW_UNIT + 3
    rollouts = [Rollout(token_ids=[7] * count, mask=[1] * count, has_ended=True) for count in (2, long)]
    rows = {**rollout_rows([[1, 2]] * 2, rollouts, 4 * ROW_UNIT, pad_id=0), "advantages": torch.tensor([1.0, -1.0])}
    cut = without_padding(rows)
    assert cut["inputs"].shape == cut["targets"].shape == (2, padded_length(long, 4 * ROW_UNIT))
    assert torch.equal(cut["targets"], rows["targets"][:, : cut["targets"].shape[1]])
    assert (cut["targets"] != -1).sum() == (rows["targets"] != -1).sum()
    assert torch.equal(cut["advantages"], rows["advantages"])
    assert without_padding({name: own[:1] for name, own in rows.items()})["inputs"].shape[0] == 1


def test_means_are_shares_of_completions_and_of_groups():
    figures = RolloutFigures()
    assert figures.means(figures.sums.tolist()) == {}
    figures.add(completions=1, tokens=10, reward=1.5, right=True, form=True, tool_use=True, unfinished=False)
    figures.add(completions=1, tokens=20, reward=0.0, right=False, form=True, tool_use=False, unfinished=True)
    figures.add(groups=2, mixed_groups=True)
    assert figures.means(figures.sums.tolist()) == {
        "reward": 0.75, "train_accuracy": 0.5, "format_rate": 1.0, "tool_use": 0.5, "unfinished": 0.5,
        "completion_len": 15.0, "mixed_groups": 0.5,
    }  # fmt: skip


def rows_of(number):
    return {"inputs": torch.arange(6).view(6, 1) + 10 * number, "advantages": torch.full((6,), float(number))}


def test_rollouts_are_made_when_they_are_needed_and_used_as_often_as_asked():
    asked = []
    loader = iter(RolloutLoader(lambda number: asked.append(number) or rows_of(number), 2, updates=2))
    firsts = [int(next(loader)["inputs"][0]) for _ in range(6)]
    assert (firsts, asked) == ([0, 2, 4, 0, 2, 4], [0])
    assert int(next(loader)["inputs"][0]) == 10
    assert asked == [0, 1]


@pytest.mark.parametrize("num_given", [0, 3, 6, 9])
def test_a_place_is_returned_to(num_given):
    """At the start, between the two updates on the same rollouts, and between rollouts."""
    loader = RolloutLoader(rows_of, 2, updates=2)
    for _ in range(num_given):
        next(loader)
    position = loader.position()
    assert (position["rows"] is None) is (num_given % 6 == 0)
    again = RolloutLoader(rows_of, 2, updates=2)
    again.seek(position)
    for _ in range(8):
        assert torch.equal(next(loader)["inputs"], next(again)["inputs"])
