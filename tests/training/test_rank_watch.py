"""A rank that dies ends the others soon, with one clear line, even while they wait for something that never comes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.multi_rank

PROGRAM = Path(__file__).with_name("rank_watch_program.py")


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """(exit statuses by rank, lines of the ranks on stderr, lines on stdout, seconds) of a story."""
    folder = tmp_path_factory.mktemp("stories")
    subprocess.run([sys.executable, str(PROGRAM), str(folder)], timeout=120, check=True)

    def read(story):
        statuses, seconds = json.loads((folder / f"{story}.json").read_text("utf-8"))
        lines = (folder / f"{story}.err").read_text("utf-8").splitlines()
        lines = [line for line in lines if line.startswith(("error: ", "rank "))]
        said = (folder / f"{story}.out").read_text("utf-8").splitlines()
        return statuses, lines, [line for line in said if not line.startswith("[Gloo]")], seconds  # torch 2.9 says it

    return read


def test_another_rank_is_killed(told):
    statuses, lines, _, seconds = told("another is killed")
    assert statuses == [1, -9, 1]
    assert len(lines) == 1
    assert "rank 1 died" in lines[0]
    assert "--ckpt_path last" in lines[0]
    assert seconds < 30


def test_rank_0_is_killed(told):
    statuses, lines, _, seconds = told("rank 0 is killed")
    assert statuses == [-9, 1, 1]
    assert sorted(line.split(";")[1][:12] for line in lines) == [" rank 1 exit", " rank 2 exit"]
    assert all("rank 0 died" in line for line in lines)
    assert seconds < 30


def test_another_rank_fails(told):
    """Rank 0 says why, since the failed rank's own words may be on another machine."""
    statuses, lines, _, _ = told("another fails")
    assert statuses == [1, 1, 2]
    assert len(lines) == 1
    assert "rank 2 failed with ValueError: the third shard is bad" in lines[0]


def test_an_error_of_all_ranks_is_told_once(told):
    statuses, lines, _, _ = told("all fail")
    assert statuses == [2, 2, 2]
    assert lines == ["rank 0 reports: the third shard is bad"]


def test_a_rank_that_is_done_first_is_not_missed(told):
    statuses, lines, said, _ = told("one is done first")
    assert statuses == [0, 0, 0]
    assert lines == []
    assert sorted(said) == ["rank 0 ends well", "rank 1 ends well", "rank 2 ends well"]
