"""Every part of check.py on cards of five compute capabilities, on the stand-in for a GPU."""

import os
from pathlib import Path

import pytest
import stand_in
import torch


@pytest.mark.slow
@pytest.mark.parametrize("capability", list(stand_in.CARDS))
def test_dry_run(capability, tmp_path):
    if torch.version.cuda is None:
        pytest.skip("the stand-in needs a CUDA build of torch")
    build = os.environ.get("FAKE_CUDA_BUILD")
    if not build or not Path(build, "libfakert.so").exists():
        pytest.skip("FAKE_CUDA_BUILD does not name what cuda_stand_in/build.sh has built")
    arguments = ["--build", build, "--out", str(tmp_path), "--capabilities", capability]
    assert stand_in.main(arguments) == 0, (tmp_path / capability / "table.md").read_text()
