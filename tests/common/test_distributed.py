import pytest
import torch.distributed as dist

from nanochat_lit.common.distributed import is_rank_zero, rank, world_size
from nanochat_lit.common.errors import UserError


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def test_a_single_process():
    assert (rank(), world_size(), is_rank_zero()) == (0, 1, True)


def test_torchrun_variables(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert (rank(), world_size(), is_rank_zero()) == (3, 8, False)


def test_the_process_group_wins(monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        assert (rank(), world_size(), is_rank_zero()) == (0, 1, True)
    finally:
        dist.destroy_process_group()


def test_nonsense_in_the_environment(monkeypatch):
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(UserError, match="RANK='first'"):
        rank()
