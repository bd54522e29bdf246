import os
import platform
import subprocess
import sys

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


PROGRAM = """
import torch
from nanochat_lit.common.compilers import cpp_compiler, use_configured_compiler
print(cpp_compiler()[1:])
use_configured_compiler()
print(torch.compile(lambda x: x.sin() + 1)(torch.zeros(8)).sum().item())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.system() == "Windows", reason="the wrapper is a shell script")
def test_a_compiler_of_several_words(tmp_path):
    """CXX="ccache g++" builds our kernels and what torch.compile writes."""
    wrapper, called = tmp_path / "wrapper", tmp_path / "called"
    wrapper.write_text(f'#!/bin/sh\necho "$1" >> {called}\nexec "$@"\n')
    wrapper.chmod(0o755)
    folders = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment = {**os.environ, **folders, "CXX": f"{wrapper} g++ -DWORDS=2"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["['g++', '-DWORDS=2']", "8.0"]
    assert "g++" in called.read_text()


def test_words_of_the_configured_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    program = tmp_path / "my compiler"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for configured, words in {
        f"'{program}' g++ -O1": [str(program), "g++", "-O1"],
        str(program): [str(program)],  # a path with a space
        f"'{program} -O1": None,  # a quote that is not closed
        "ccache g++": None,
        "  ": None,
    }.items():
        monkeypatch.setenv("CXX", configured)
        assert compilers.cpp_compiler() == words
