"""A checkpoint that is not as it was written is noticed, reported, and passed over for the one before."""

import shutil

import pytest

from nanochat_lit import cli
from nanochat_lit.engine.checkpoint import damage, step_files
from nanochat_lit.training.run_records import read_metrics


def truncate(path):
    """What a copy that was broken off leaves."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def flip_one_bit(path):
    """What a failing disk does; the archive can still be read to its end."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGES = [truncate, empty, flip_one_bit]


@pytest.fixture
def run(pretrained, tmp_path):
    """A finished run with checkpoints at steps 2 and 4."""
    return shutil.copytree(pretrained, tmp_path / "run")


def replaced(path, change):
    """Change a file but not what else is linked to it."""
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").replace(path)
    change(path)


@pytest.mark.parametrize("change", DAMAGES)
def test_every_damage_is_noticed(run, change):
    path = step_files(run / "checkpoints")[4]
    assert damage(path) is None
    change(path)
    assert damage(path)


def test_the_one_before_is_used(run, capsys):
    replaced(step_files(run / "checkpoints")[4], truncate)
    (run / "checkpoints" / "last.ckpt").unlink()
    expected = read_metrics(run / "metrics.csv")
    options = ["--config", str(run / "config.yaml"), "--run_dir", str(run), "--ckpt_path", "last"]
    assert cli.main(["fit", *options]) == 0
    err = capsys.readouterr().err
    assert "step000004.ckpt is damaged: cannot be read to its end" in err
    assert f"resuming from {run / 'checkpoints' / 'step000002.ckpt'}" in err
    found = read_metrics(run / "metrics.csv")
    for step in (3, 4):
        assert found[step]["train_loss"] == expected[step]["train_loss"]
    assert damage(step_files(run / "checkpoints")[4]) is None, "the damaged file has been replaced"


def test_none_intact(run, capsys):
    for path in (run / "checkpoints").glob("*.ckpt"):
        replaced(path, truncate)
    options = ["--config", str(run / "config.yaml"), "--run_dir", str(run), "--ckpt_path", "last"]
    assert cli.main(["fit", *options]) == 2
    err = capsys.readouterr().err
    assert "no checkpoint in" in err
    assert "start a new run without --ckpt_path" in err


@pytest.mark.parametrize("change", DAMAGES)
def test_one_that_is_asked_for_by_name_is_not_replaced_silently(run, change, capsys):
    path = step_files(run / "checkpoints")[4]
    replaced(path, change)
    options = ["--config", str(run / "config.yaml"), "--run_dir", str(run), "--ckpt_path", str(path)]
    assert cli.main(["fit", *options]) == 2
    assert "step000004.ckpt is damaged" in capsys.readouterr().err
