"""Peak memory grows by what was held, and stays when it is given back."""

import resource
import subprocess
import sys

import pytest

from nanochat_lit.common.hardware import peak_memory_bytes

MIB = 2**20


GROWTH = f"""
import os
from pathlib import Path
import torch
from nanochat_lit.common.hardware import peak_memory_bytes

before = peak_memory_bytes()
resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
held = torch.ones((before - resident + 64 * {MIB}) // 4)
del held
print(peak_memory_bytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident pages of now from /proc")
def test_it_grows_by_what_was_held():
    """In a process of its own: what others leave in this one may be freed at any moment."""
    out = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True).stdout
    assert int(out) == pytest.approx(64 * MIB, abs=16 * MIB)


def test_systems_without_proc(tmp_path):
    """Their figure is the most of this process and of the one it was made from."""
    unit = 1 if sys.platform == "darwin" else 1024
    assert peak_memory_bytes(status=tmp_path / "none") == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    assert peak_memory_bytes() <= peak_memory_bytes(status=tmp_path / "none") * 1.01
