"""When a run is compiled, and where the results are kept."""

import os

import pytest

from nanochat_lit import cli
from nanochat_lit.common import compilers
from nanochat_lit.training import execution
from nanochat_lit.training.execution import CPU_COMPILE_PAYS_FLOPS, decide_compile, keep_compile_cache

LONG, SHORT = 2 * CPU_COMPILE_PAYS_FLOPS, CPU_COMPILE_PAYS_FLOPS / 2


@pytest.mark.parametrize(
    ("mode", "device", "flops", "missing", "compiles", "words"),
    [
        ("auto", "cuda", SHORT, "", True, "on"),
        ("auto", "cpu", LONG, "", True, "on"),
        ("auto", "cpu", SHORT, "", False, "too short"),
        ("auto", "cpu", LONG, "no compiler", False, "off: no compiler"),
        ("auto", "cuda", LONG, "Triton is not installed", False, "Triton"),
        ("true", "cpu", SHORT, "no compiler", True, "on"),
        ("false", "cuda", LONG, "", False, "off"),
    ],
)
def test_decision(mode, device, flops, missing, compiles, words, monkeypatch):
    monkeypatch.setattr(execution, "missing_compiler", lambda _: missing)
    decision, reason = decide_compile(mode, device, flops)
    assert decision == compiles
    assert words in reason


@pytest.mark.parametrize(
    ("device", "triton", "cpp", "words"),
    [("cpu", False, True, ""), ("cpu", True, False, "C++"), ("cuda", True, True, ""), ("cuda", False, True, "Triton"),
     ("cuda", True, False, "C++"), ("xpu", False, True, "Triton"), ("mps", True, True, "mps")],
)  # fmt: skip
def test_what_is_missing(device, triton, cpp, words, monkeypatch):
    monkeypatch.setattr(compilers, "has_c_compiler", lambda: True)
    monkeypatch.setattr(compilers, "has_triton", lambda: triton)
    monkeypatch.setattr(compilers, "has_cpp_compiler", lambda: cpp)
    found = compilers.missing_compiler(device)
    assert (words in found) if words else found == ""


def test_a_machine_without_a_compiler_says_so_once_and_trains(write_recipe, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(execution, "CPU_COMPILE_PAYS_FLOPS", 0)
    assert cli.main(["fit", "--config", str(write_recipe(model={"compile": "auto"}))]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "compile  " in line]
    assert len(lines) == 1
    assert "off: no C++ compiler found" in lines[0]


def test_the_cache_is_kept_unless_the_user_has_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # is unset
    assert keep_compile_cache() == tmp_path / "nanochat_lit" / "inductor"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "nanochat_lit" / "inductor")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    assert str(keep_compile_cache()) == "mine"


def test_the_table_says_what_was_chosen_once(write_recipe, capsys):
    assert cli.main(["fit", "--config", str(write_recipe(model={"activation_checkpointing": True}))]) == 0
    lines = capsys.readouterr().err.splitlines()
    for name, words in (
        ("attention", "sdpa (full), blocked (windows)"),
        ("compile", "off"),
        ("compute dtype", "float32"),
        ("activations", "recomputed"),
    ):
        (line,) = [line for line in lines if line.startswith(f"  {name} ")]
        assert words in line
