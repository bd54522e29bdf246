"""The benchmark beside llama.cpp, as far as it goes without that program."""

import pytest
from bench import main
from bench_llama import _random_file


def test_the_program_is_asked_for(tmp_path, capsys):
    assert main(["llama", f"--node_folder={tmp_path}"]) == 2
    assert "npm install --ignore-scripts node-llama-cpp" in capsys.readouterr().err


def test_a_random_file_holds_the_matrices_of_a_token(tmp_path):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "model.gguf"
    num_bytes = _random_file(path, 1, 512, 64, "q8_0")
    tensors = {tensor.name: tensor.n_bytes for tensor in gguf.GGUFReader(path).tensors}
    matrices = sum(size for name, size in tensors.items() if name.endswith(".weight") and "norm" not in name)
    assert num_bytes == pytest.approx(
        matrices - tensors["token_embd.weight"], rel=0.2
    )  # names and scores of tokens, too
