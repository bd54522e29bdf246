"""Every part of check.py as a test, each in a process of its own; see check.py for what they look at."""

import pytest
from check import PARTS, is_stand_in, parse, run_part

LONGEST = {"train_d12", "train_d12_fp8", "train_d24", "train_d24_fp8"}


@pytest.mark.gpu
@pytest.mark.parametrize(
    "part",
    [
        pytest.param(part, id=part.name, marks=[pytest.mark.slow] if part.name in LONGEST else [])
        for part in PARTS
        if not part.of_peer
    ],
)
def test_part(part, tmp_path):
    options = parse(["--out", str(tmp_path)])
    options.is_dry_run = is_stand_in()
    result = run_part(part, 10 * part.seconds, options)
    assert result["status"] == "passed", result["failures"]
