"""`fp8`: on which hardware a run trains in float8. The numbers are tested in tests/model/test_float8.py."""

import pytest
import torch

from nanochat_lit import cli
from nanochat_lit.common.errors import UserError
from nanochat_lit.training.execution import decide_float8

REFUSED = [
    ("cpu", None, torch.bfloat16, "needs a CUDA GPU, this run is on cpu"),
    ("mps", None, torch.bfloat16, "mps"),
    ("cuda", None, torch.bfloat16, "NVIDIA"),
    ("cuda", (7, 5), torch.bfloat16, "this GPU has 7.5"),
    ("cuda", (8, 0), torch.bfloat16, "this GPU has 8.0"),
    ("cuda", (8, 6), torch.bfloat16, "this GPU has 8.6"),
    ("cuda", (9, 0), torch.float16, "compute_dtype bfloat16, this run uses float16"),
    ("cuda", (9, 0), torch.float32, "this run uses float32"),
]


@pytest.mark.parametrize(("device", "capability", "dtype", "words"), REFUSED)
def test_hardware_without_float8(device, capability, dtype, words):
    with pytest.raises(UserError, match=words) as error:
        decide_float8("true", device, capability, dtype)
    assert len(str(error.value).splitlines()) == 1
    trains, note = decide_float8("auto", device, capability, dtype)
    assert not trains
    assert note.startswith("off: ")
    assert words in note


@pytest.mark.parametrize("capability", [(8, 9), (9, 0), (10, 0), (12, 0)])
def test_hardware_with_float8(capability):
    assert decide_float8("auto", "cuda", capability, torch.bfloat16) == (True, "on")
    assert decide_float8("true", "cuda", capability, torch.bfloat16) == (True, "on")
    assert decide_float8("false", "cuda", capability, torch.bfloat16) == (False, "off")


def test_another_word():
    with pytest.raises(UserError, match="fp8 is 'yes'; use one of auto, true, false"):
        decide_float8("yes", "cuda", (9, 0), torch.bfloat16)


def test_a_run_on_cpu_ends_before_any_data_is_read(write_recipe, capsys, tmp_path):
    recipe = write_recipe(model={"fp8": True}, data={"path": str(tmp_path / "not read, so not missed")})
    assert cli.main(["fit", "--config", str(recipe)]) == 2
    error = capsys.readouterr().err.splitlines()
    assert error == ["error: fp8 needs a CUDA GPU, this run is on cpu; remove model.fp8 or set it to auto"]


def test_auto_on_a_cpu_trains_and_says_why_not(write_recipe, capsys):
    assert cli.main(["fit", "--config", str(write_recipe(model={"fp8": "auto"}))]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("  float8 ")]
    assert line.endswith("off: fp8 needs a CUDA GPU, this run is on cpu")
