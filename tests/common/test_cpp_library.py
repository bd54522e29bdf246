"""C++ sources as libraries: what is said when one cannot be built."""

from pathlib import Path

import pytest

from nanochat_lit.common import compilers
from nanochat_lit.common.compilers import has_cpp_compiler


def test_the_reason_is_the_compilers_first_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_cpp_compiler():
        pytest.skip("no C++ compiler found")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "wrong.cpp"
    source.write_text('#warning "look"\nint f() { return missing; }\nint g() { return also; }\n')
    assert compilers.cpp_library(source) is None
    assert compilers.library_problem(source).startswith(f"{source}:2:")
    assert "missing" in compilers.library_problem(source)


def test_no_compiler_is_a_reason_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    source = tmp_path / "any.cpp"
    source.write_text("")
    assert compilers.library_problem(source) == "no C++ compiler found (g++ or clang++)"
