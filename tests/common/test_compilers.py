import os
import platform

import pytest

from nanochat_lit.common import compilers
from nanochat_lit.common.compilers import has_cpp_compiler


def test_compiler_is_looked_up_on_the_path(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not has_cpp_compiler()
    compiler = tmp_path / ("cl.exe" if platform.system() == "Windows" else "g++")
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    assert has_cpp_compiler()
    monkeypatch.setenv("CXX", "missing-compiler -O2")
    assert not has_cpp_compiler()
    assert os.environ["PATH"] == str(tmp_path)


@pytest.mark.parametrize("device", ["cuda", "xpu"])
def test_triton_needs_a_c_compiler(device, monkeypatch, tmp_path):
    monkeypatch.setattr(compilers, "has_triton", lambda: True)
    monkeypatch.setattr(compilers, "has_cpp_compiler", lambda: True)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compilers.missing_compiler(device) == "Triton needs a C compiler (gcc or clang)"
    assert compilers.missing_compiler("cpu") == ""
    (tmp_path / "gcc").write_text("#!/bin/sh\n")
    (tmp_path / "gcc").chmod(0o755)
    assert compilers.missing_compiler(device) == ""
    monkeypatch.setenv("CC", "missing-compiler -O2")
    assert compilers.missing_compiler(device) != ""
