"""2 and 3 ranks equal 1 rank: the same global batches give the same model, whatever the strategy.

`rank_program.py` trains in all the ways at once (its imports take longer than its training); here its results are compared.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.multi_rank

WAYS = [(world, strategy) for world in (2, 3) for strategy in ("zero", "ddp")]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    program = Path(__file__).with_name("rank_program.py")
    done = subprocess.run(
        [sys.executable, str(program), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {world: torch.load(folder / f"world{world}.pt", weights_only=True) for world in (1, 2, 3)}


def close(got, wanted, tolerance=1e-5):
    torch.testing.assert_close(got, wanted.expand_as(got), atol=tolerance, rtol=0)


def assert_same_state(got, wanted):
    assert got["param_groups"] == wanted["param_groups"]
    assert got["state"].keys() == wanted["state"].keys()
    for number, state in wanted["state"].items():
        for name, value in state.items():
            assert got["state"][number][name].shape == value.shape
            close(got["state"][number][name], value)


@pytest.mark.parametrize("api", ["trainer", "fabric"])
@pytest.mark.parametrize(("world", "strategy"), WAYS)
def test_ranks_equal_one_rank(worlds, world, strategy, api):
    """20 steps, accumulation of 3 or 2 micro-batches a rank against 6. Measured: losses 1e-6, parameters 5e-6 apart."""
    got, wanted = worlds[world][f"{api}_{strategy}"], worlds[1][f"{api}_auto"]
    close(got["losses"], wanted["losses"])
    close(got["parameters"], wanted["parameters"])
    assert torch.equal(got["parameters"], got["parameters"][:1].expand_as(got["parameters"])), "ranks drifted apart"
    assert wanted["losses"][-1] < wanted["losses"][0] - 0.3, "nothing was learned, so nothing was compared"
    assert_same_state(got["state"], wanted["state"])


@pytest.mark.parametrize("world", [2, 3])
def test_state_is_divided(worlds, world):
    """Tables and stacks by N, rounded up to whole rows and matrices; only vectors of a few numbers are on every rank."""
    everything = int(worlds[1]["trainer_auto"]["elements"][0])
    divided, whole = worlds[world]["trainer_zero"]["elements"], worlds[world]["trainer_ddp"]["elements"]
    assert (whole == everything).all()
    assert everything <= int(divided.sum()) <= 1.01 * everything
    assert int(divided.max()) <= (0.57, 0.34)[world - 2] * everything  # of 12 + 3 + 3 matrices 8, 2 and 2 are rank 0's


@pytest.mark.parametrize(("world", "strategy"), WAYS)
def test_gradient_norm_is_global(worlds, world, strategy):
    """Before the step, on every rank, although zero's gradients are local there."""
    close(worlds[world][f"trainer_{strategy}"]["norms"], worlds[1]["trainer_auto"]["norms"])


@pytest.mark.parametrize("kind", ["norm", "value"])
@pytest.mark.parametrize("strategy", ["zero", "ddp"])
def test_clipping_is_global(worlds, strategy, kind):
    got, wanted = worlds[3][f"{kind}_clipped_{strategy}"], worlds[1][f"{kind}_clipped_auto"]
    close(got["losses"], wanted["losses"])
    assert_same_state(got["state"], wanted["state"])
    moments = [worlds[1][run]["state"]["state"][0]["exp_avg"] for run in (f"{kind}_clipped_auto", "unclipped")]
    assert moments[0].norm() < 0.8 * moments[1].norm(), "clipping did nothing, so nothing was compared"


@pytest.mark.parametrize("end", ["leg", "leg_ddp", "from_ddp"])
def test_checkpoints_fit_any_world(worlds, end):
    """Under zero from 2 ranks to 1 to 3 (8, 14, 20 steps), the last leg also under ddp; and from 2 ddp to 3 zero."""
    got, wanted = worlds[3][end], worlds[1]["trainer_auto"]
    close(got["losses"], wanted["losses"][-len(got["losses"]) :])
    close(got["parameters"], wanted["parameters"])
    assert_same_state(got["state"], wanted["state"])


@pytest.mark.parametrize("way", ["float16_zero", "float16_ddp", "float16_fabric_zero", "float16_fabric_ddp"])
def test_one_overflowing_rank_stops_the_step_of_all(worlds, way):
    """Rank 1's gradients overflow at step 3: no rank steps, both halve the scale, and they go on together."""
    parameters, scales = worlds[2][way]["parameters"], worlds[2][way]["scales"]
    assert torch.equal(parameters[0], parameters[1])
    assert torch.equal(scales[0], scales[1])
    scale = 2.0**16
    assert scales[0].tolist() == [scale] * 3 + [scale / 2] * 5
    moved = [not torch.equal(before, after) for before, after in zip(parameters[0], parameters[0][1:], strict=False)]
    assert moved == [True, True, False, True, True, True, True]
    assert parameters.isfinite().all()


@pytest.mark.parametrize("strategy", ["zero", "ddp"])
def test_float16_learns_on_two_ranks(worlds, strategy):
    result = worlds[2][f"float16_{strategy}"]
    assert result["steps_taken"] == 7  # of 8
    assert result["losses"][4] < result["losses"][0] - 0.05  # the same micro-batches
