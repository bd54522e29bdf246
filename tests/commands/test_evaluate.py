import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nanochat_lit import cli
from nanochat_lit.engine.export import save_export
from nanochat_lit.evaluation.bpb import evaluate_documents
from nanochat_lit.model import GPT
from nanochat_lit.tokenizer import Tokenizer

TEXTS = ["the cat sat on the mat", "hello world " * 40, "naïve 日本語"]


@pytest.fixture
def folder(tmp_path: Path, random_model: Callable[..., GPT], tokenizer: Tokenizer) -> Path:
    save_export(tmp_path / "export", random_model(), tokenizer)
    return tmp_path / "export"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert cli.main(["evaluate", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_bpb(
    folder: Path,
    corpus: Path,
    random_model: Callable[..., GPT],
    tokenizer: Tokenizer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ("--model", folder, "--data", corpus, "--compute_dtype", "float32", "--device", "cpu")
    for max_docs in (None, 2):
        limit = () if max_docs is None else ("--max_docs", max_docs)
        result = json.loads(run(capsys, "bpb", *options, *limit, "--json").splitlines()[-1])
        expected = evaluate_documents(random_model(), tokenizer, TEXTS, 64, max_docs)
        assert result["bpb"] == pytest.approx(expected["bpb"], rel=1e-5)
        assert result["documents"] == (max_docs or 3)
        assert result["bytes"] == sum(len(text.encode()) for text in TEXTS[:max_docs])
    assert "bits per byte" in run(capsys, "bpb", *options)


def test_samples(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("samples", "--model", folder, "--prompts", '["the cat", "hello"]', "--max_new_tokens", 5)
    for chat in ("true", "false"):
        result = json.loads(run(capsys, *options, "--chat", chat, "--json"))
        assert [entry["prompt"] for entry in result] == ["the cat", "hello"]
    assert "> the cat" in run(capsys, *options)


def test_tiny_world(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("tiny_world", "--model", folder, "--per_category", 2, "--max_new_tokens", 4)
    result = json.loads(run(capsys, *options, "--json"))
    assert 0 <= result["accuracy"] <= 1
    assert all(category["count"] == 2 for category in result["categories"].values())
    assert "all" in run(capsys, *options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bpb", "--data", "nowhere"], "nowhere"),
        (["bpb", "--data", "{corpus}", "--max_docs", "0"], "max_docs is 0"),
        (["tiny_world", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["tiny_world", "--data", "{corpus}"], "corpus.jsonl:1: an item needs 'messages'"),
        (["tiny_world", "--per_category", "0"], "per_category is 0"),
    ],
)
def test_mistakes(
    folder: Path, corpus: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [argument.format(corpus=corpus) for argument in arguments]
    assert cli.main(["evaluate", filled[0], "--model", str(folder), *filled[1:]]) == 2
    assert message in capsys.readouterr().err


def test_large_batches_multiply_plain_matrices(
    folder: Path, corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layout for decoding is many times slower for them on processors without AVX-512."""
    seen: list[GPT] = []

    def noted(model: GPT, *arguments: object) -> dict[str, float]:
        seen.append(model)
        return {"bpb": 1.0, "documents": 1, "tokens": 1, "bytes": 1, "seconds": 1.0}

    monkeypatch.setattr("nanochat_lit.evaluation.bpb.evaluate_documents", noted)
    run(capsys, "bpb", "--model", folder, "--data", corpus, "--device", "cpu")
    assert seen[0].decode_kernel is None
