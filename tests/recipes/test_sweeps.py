"""The recipes of sweeps: complete, every run of them parsed by `fit`, budgets as long as they say."""

import io
import shlex
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import yaml

from nanochat_lit import cli
from nanochat_lit.optim import derive_plan
from nanochat_lit.report.sweep import read_sweep
from nanochat_lit.training import PretrainModule

FOLDER = Path(__file__).resolve().parents[2] / "recipes"


def resolved(arguments):
    out = io.StringIO()
    with redirect_stdout(out):
        assert cli.main([*arguments, "--print_config"]) == 0
    return yaml.safe_load(out.getvalue())


@pytest.mark.parametrize(("name", "count"), [("miniseries", 6), ("scaling_laws", 28)])
def test_first_and_last_run(name, count):
    sweep = read_sweep(f"recipes/{name}.yaml", {})
    assert sweep.run_dir == f"runs/{name}"
    assert len({run.folder for run in sweep.runs}) == len(sweep.runs) == count
    for run in (sweep.runs[0], sweep.runs[-1]):
        config = resolved(run.arguments)
        model = config["model"]["init_args"]
        assert (config["run_dir"], model["depth"]) == (str(run.folder), run.depth)
        assert (model["target_flops"], model["num_steps"]) == (run.budget, None)
        module = PretrainModule(**model)
        plan = derive_plan(module.build_config(config["data"]["init_args"]["vocab_size"]), **module.horizon)
        if run.budget is not None:
            assert plan.total_flops == pytest.approx(run.budget, rel=0.02)
            assert plan.num_steps >= 100


@pytest.mark.parametrize("name", ["miniseries", "scaling_laws"])
def test_the_command_lists_its_runs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # the recipe is found in the package
    assert cli.main(["sweep", f"recipes/{name}.yaml", "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.endswith(": to do") for line in lines[::2])
    assert all(shlex.split(line)[:4] == ["nanochat-lit", "fit", "--config", "recipes/d12.yaml"] for line in lines[1::2])


@pytest.mark.parametrize("path", sorted(FOLDER.glob("ablations/*.yaml")), ids=lambda path: path.stem)
def test_variants(path):
    sweep = read_sweep(f"recipes/ablations/{path.name}", {})
    assert sweep.run_dir == f"runs/ablations/{path.stem}"
    settings = [resolved(run.arguments) for run in sweep.runs[: len(sweep.variants)]]
    differing = {yaml.safe_dump({**config, "run_dir": ""}) for config in settings}
    assert len(differing) == len(sweep.variants), "two variants are the same"
    assert all(PretrainModule(**config["model"]["init_args"]) for config in settings)
