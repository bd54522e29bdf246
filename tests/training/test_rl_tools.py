"""`fit` of the RL stage with tools, a reward and guided answers by recipe alone: the files lie in the current folder."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

from nanochat_lit import cli, load_export
from nanochat_lit.tokenizer import render_conversation
from nanochat_lit.training.rollout_data import RolloutDataModule
from nanochat_lit.training.run_records import read_metrics

TOOLS = {"degrees": "own_tools.degrees", "python": "nanochat_lit.engine.python_tool.run_tool"}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory, calling_export, calling_conversation):
    """The current folder, with questions for a model that calls a function of a file, and a recipe."""
    folder = tmp_path_factory.mktemp("tools")
    shutil.copy(Path(__file__).parents[1] / "extending" / "my_tools.py", folder / "own_tools.py")
    expect = {"category": "weather", "expect": {"any": ["It is 92."]}}
    rows = [{"messages": calling_conversation[:1], "tools": names, **expect} for names in (["degrees"], [])]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    load = "nanochat_lit.tasks.tiny_world.TinyWorldTask.load"
    task = {"class_path": load, "init_args": {"path": "questions.jsonl"}}
    model = {
        "base": str(calling_export), "num_steps": 2, "eval_every": 1, "questions_per_step": 2, "num_samples": 2,
        "max_new_tokens": 160, "temperature": 0.8, "tools": TOOLS, "reward": "own_tools.calls_pay", "matrix_lr": 0.02,
        "embedding_lr": 0.1, "unembedding_lr": 0.01, "scalar_lr": 0.1,
    }  # fmt: skip
    content = {
        "run_dir": "run", "compute_dtype": "float32", "log_every": 1, "checkpoint_every": 1, "keep_last": 9,
        "model": {"class_path": "nanochat_lit.training.RLModule", "init_args": model},
        "data": {
            "class_path": "nanochat_lit.training.RolloutDataModule",
            "init_args": {"train": task, "val": task, "micro_batch_size": 4, "val_samples": 0},
        },
        "trainer": {"accelerator": "cpu", "devices": 1},
    }  # fmt: skip
    (folder / "rl.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        sys.modules.pop("own_tools", None)
        yield folder
        sys.modules.pop("own_tools", None)


def fit(*options):
    return cli.main(["fit", "--config", "rl.yaml", *options])


def test_tools_and_a_reward_from_the_current_folder(tmp_path):
    """They are used, and a run that resumes calls them again: the same weights, bit for bit."""
    assert fit() == 0
    metrics = read_metrics(Path("run/metrics.csv"))
    assert metrics[0]["val_accuracy"] == 0.5, "one of the questions offers the function that the answer needs"
    assert metrics[1]["reward"] > metrics[1]["train_accuracy"], "calls pay"
    shown = Path("run/samples.md").read_text("utf-8")
    assert "</tool_call> [<tool_response>31</tool_response>] In F: [31*2+30 = 92]It is 92. (right)" in shown
    assert "(wrong)" in shown
    again = tmp_path / "again"
    shutil.copytree("run", again, ignore=shutil.ignore_patterns("checkpoints", "export"))
    (again / "checkpoints").mkdir()
    shutil.copy("run/checkpoints/step000001.ckpt", again / "checkpoints")
    torch.manual_seed(12345)
    assert fit("--run_dir", str(again), "--ckpt_path", "last") == 0
    ours, theirs = (
        load_export(run / "export", compute_dtype="float32")[0].state_dict() for run in (again, Path("run"))
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (again / "samples.md").read_text("utf-8") == shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.partial_reward", "0.1"], "reward replaces partial_reward"),
        (["--model.guided", "1.5"], "guided is 1.5; use 0 (off) to 1"),
        (["--model.tools", '{"other": "own_tools.degrees"}'], "use a list of the names of model.tools: other"),
        (["--model.tools", '{"degrees": "own_tools.nothing"}'], "own_tools.nothing"),
        (["--model.reward", "math.inf"], "reward"),
    ],
)
def test_bad_settings(capsys, tmp_path, options, message):
    assert fit("--run_dir", str(tmp_path), *options) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_starts_are_parts_of_the_reference_answer(tokenizer):
    """Of random length up to the last call, each followed by a token that fine-tuning trains."""
    parts = [("text", "So "), ("python", "1+2"), ("python_output", "3"), ("python", "3+4"), ("python_output", "7")]
    answer = [{"type": kind, "text": text} for kind, text in [*parts, ("text", "It is 7.")]]
    messages = [{"role": "user", "content": "1, 2 and 4?"}, {"role": "assistant", "content": answer}]
    data = RolloutDataModule([{"messages": messages}, {"messages": messages[:1]}], [{}])
    data.tokenizer, data.prompts = tokenizer, {0: [1]}
    token_ids, mask = render_conversation(tokenizer, {"messages": messages})
    first = token_ids.index(tokenizer.special_ids["<|assistant_start|>"]) + 1
    last = max(n for n, token in enumerate(token_ids) if token == tokenizer.special_ids["<|python_end|>"])
    starts = [data.start(number, 0.5) for number in range(400)]
    guided = [start for start in starts if start]
    assert 150 < len(guided) < 250
    assert all(start == token_ids[first : first + len(start)] for start in guided)
    wanted = {n - first for n in range(first, last + 1) if mask[n]}
    assert {len(start) for start in starts} == wanted
    assert starts == [data.start(number, 0.5) for number in range(400)]
    data.prompts = {1: [1]}
    assert data.start(0, 1.0) == [], "without a reference answer"
