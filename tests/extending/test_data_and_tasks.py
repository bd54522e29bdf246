"""A data set, a callback, a task and its reward from a module beside the recipe, by recipe alone; the page shows the same."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from nanochat_lit import cli

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "recipes" / "docs" / "extending.md"


@pytest.fixture(autouse=True)
def _beside_the_recipe(tmp_path, monkeypatch):
    """The module lies in the current folder, which is on nobody's path."""
    shutil.copy(HERE / "my_extension.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(HERE))])
    yield
    sys.modules.pop("my_extension", None)


def test_a_data_set_and_a_callback(write_recipe, tmp_path):
    recipe = write_recipe(
        data={"path": None, "source": {"class_path": "my_extension.Squares"}, "vocab_size": 300},
        trainer={
            "accelerator": "cpu",
            "devices": 1,
            "callbacks": [{"class_path": "my_extension.CountSteps", "init_args": {"path": "steps.txt"}}],
        },
    )
    assert cli.main(["fit", "--config", str(recipe), "--trainer.max_steps", "2"]) == 0
    assert (tmp_path / "steps.txt").read_text() == "2"


def test_a_task_trains_is_rewarded_and_is_evaluated(pretrained, tmp_path, capsys):
    task = {
        split: {"class_path": "my_extension.Reversal", "init_args": {"split": split}} for split in ("train", "test")
    }
    sft = {
        "run_dir": "sft",
        "compute_dtype": "float32",
        "model": {
            "class_path": "nanochat_lit.training.SFTModule",
            "init_args": {
                "base": str(pretrained / "export"),
                "num_steps": 1,
                "tokens_per_step": 128,
                "compile": "false",
            },
        },
        "data": {
            "class_path": "nanochat_lit.training.MixtureDataModule",
            "init_args": {
                "train": {"reversal": task["train"]},
                "val": {"reversal": task["test"]},
                "micro_batch_size": 2,
            },
        },
        "trainer": {"accelerator": "cpu", "devices": 1},
    }
    rl = {
        **sft,
        "run_dir": "rl",
        "model": {
            "class_path": "nanochat_lit.training.RLModule",
            "init_args": {
                "base": "sft/export", "num_steps": 1, "questions_per_step": 2, "num_samples": 2, "max_new_tokens": 4,
                "partial_reward": 0.5,
            },
        },
        "data": {
            "class_path": "nanochat_lit.training.RolloutDataModule",
            "init_args": {"train": task["train"], "val": task["test"], "micro_batch_size": 4, "val_samples": 0},
        },
    }  # fmt: skip
    for name, recipe in {"sft": sft, "rl": rl}.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
        assert cli.main(["fit", "--config", f"{name}.yaml"]) == 0, capsys.readouterr().err
    words = [
        "evaluate",
        "chat",
        "--model",
        "rl/export",
        "--max_new_tokens",
        "4",
        "--tasks",
        '["my_extension.Reversal"]',
    ]
    assert cli.main(words) == 0, capsys.readouterr().err
    (result,) = tmp_path.glob("rl/*evaluation/chat_core.json")
    assert "my_extension.Reversal" in json.dumps(json.loads(result.read_text()))


@pytest.mark.parametrize(
    ("name", "message"),
    [("my_extension.SignSGD", "required arguments"), ("my_extension.No", "cannot be imported"), ("no.X", "imported")],
)
def test_what_is_no_task(pretrained, name, message, capsys):
    assert cli.main(["evaluate", "chat", "--model", str(pretrained / "export"), "--tasks", f'["{name}"]']) == 2
    assert message in capsys.readouterr().err


def test_the_page_shows_what_is_tested():
    """Every class of the page's Python is in the modules above, up to docstrings and annotations."""

    def plain(code):
        code = re.sub(r'\n *"""[^\n]*"""\n', "\n", code)
        code = re.sub(r" -> \w+:", ":", re.sub(r": (torch\.Generator \| None|Tensor|float)(?=[,)= ])", "", code))
        return {
            line.split("  #")[0].strip().replace(" = None", "=None")
            for line in code.splitlines()
            if "import" not in line
        } - {""}

    shown = set().union(*map(plain, re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), flags=re.DOTALL)))
    written = set().union(
        *(plain((HERE / name).read_text("utf-8")) for name in ("my_extension.py", "my_model.py", "my_tools.py"))
    )
    assert shown - written == set()
