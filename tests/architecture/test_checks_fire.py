"""Selecting a rule is not enough: the configured linters are shown a fault and must find it."""

import shutil
import subprocess
import sys

import pytest

LONG_BRANCHES = "def f(x: int) -> int:\n    '''F.'''\n" + "".join(
    f"    if x == {i}:\n        return {i}\n" for i in range(14)
)
FAULTS = {
    "TID253": '"""M."""\n\nimport datasets\n\nprint(datasets)\n',
    "C901": '"""M."""\n\n\n' + LONG_BRANCHES + "    return 0\n",
    "D103": '"""M."""\n\n\ndef public() -> None:\n    pass\n',
    "D417": '"""M."""\n\n\ndef f(x: int, y: int) -> int:\n    """F.\n\n    Args:\n        x: X.\n    """\n    return x + y\n',
    "T201": '"""M."""\n\nprint(1)\n',
    "F401": '"""M."""\n\nimport os\n',
    "BLE001": '"""M."""\n\ntry:\n    X = 1\nexcept Exception:\n    X = 2\n',
    "S307": '"""M."""\n\nX = eval("1")\n',
    "S301": '"""M."""\n\nimport pickle\n\nX = pickle.loads(b"")\n',
}


@pytest.mark.parametrize("rule", sorted(FAULTS))
def test_ruff_rule_fires(rule, repository_root):
    ruff = shutil.which("ruff") or shutil.which("ruff", path=str(sys.prefix) + "/bin")
    if ruff is None:
        pytest.skip("ruff is not installed")
    done = subprocess.run(
        [ruff, "check", "--no-cache", "--output-format", "concise", "--stdin-filename", "nanochat_lit/model/fault.py", "-"],
        input=FAULTS[rule], cwd=repository_root, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert rule in done.stdout, done.stdout + done.stderr
