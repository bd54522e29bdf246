import os
import platform

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
