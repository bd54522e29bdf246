import hashlib
import json
import sys
from types import SimpleNamespace

import pytest

from nanochat_lit.commands.tokenizer import evaluate, train
from nanochat_lit.common.errors import UserError
from nanochat_lit.evaluation.tokenizer_report import domain_texts
from nanochat_lit.tokenizer import Tokenizer


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in ("a", "b"):
        lines = [
            json.dumps({"text": f"{name}{index} the red boat sails under the bridge, " * 5}) for index in range(50)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


def test_train_then_evaluate(corpus, tmp_path, capsys):
    train(str(corpus), str(tmp_path / "new"), depth=4)
    printed = capsys.readouterr().out
    tokenizer = Tokenizer.load(tmp_path / "new")
    assert f"vocabulary {tokenizer.vocab_size}, chosen for depth 4" in printed
    assert "held-out documents" in printed
    train([str(corpus / "a.jsonl"), str(corpus / "b.jsonl")], str(tmp_path / "small"), vocab_size=300)
    assert Tokenizer.load(tmp_path / "small").vocab_size == 300
    capsys.readouterr()

    evaluate(str(tmp_path / "new"), str(corpus), against=[str(tmp_path / "small")])
    table = capsys.readouterr().out
    assert str(tmp_path / "small") in table
    assert "gpt2" in table
    for domain in domain_texts():
        assert f"\n{domain} " in table
    evaluate(str(tmp_path / "new"), [str(corpus / "b.jsonl")], json=True)
    (result, *_) = json.loads(capsys.readouterr().out.splitlines()[-1])
    texts = [json.loads(line)["text"] for line in (corpus / "b.jsonl").read_text().splitlines()]
    assert result["num_bytes"] == sum(len(text) for text in texts)
    assert result["num_tokens"] == sum(len(tokenizer.encode(text)) for text in texts)


def fake_tiktoken(monkeypatch, cache, *files):
    """A module whose encodings count words; the cache has these files."""
    encoding = SimpleNamespace(n_vocab=50257, encode_ordinary_batch=lambda texts: [text.split() for text in texts])
    monkeypatch.setitem(sys.modules, "tiktoken", SimpleNamespace(get_encoding=lambda name: encoding))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    for file in files:
        (cache / hashlib.sha1(f"https://openaipublic.blob.core.windows.net/{file}".encode()).hexdigest()).write_text(
            "x"
        )


def test_gpt_tokenizers_are_compared_with_when_their_files_are_there(corpus, tmp_path, capsys, monkeypatch):
    train(str(corpus), str(tmp_path / "new"), vocab_size=300)
    fake_tiktoken(monkeypatch, tmp_path, "encodings/cl100k_base.tiktoken")
    capsys.readouterr()
    evaluate(str(tmp_path / "new"))
    table = capsys.readouterr().out
    (news,) = [line.split() for line in table.splitlines() if line.startswith("news") and "gpt4" in line]
    assert news[:5] == [
        "news",
        "gpt4",
        "50257",
        str(len(domain_texts()["news"].encode())),
        str(len(domain_texts()["news"].split())),
    ]
    assert "(gpt2 left out: its files are not in" in table
    with pytest.raises(UserError, match=r"its files are not in .*get_encoding\('o200k_base'\)"):
        evaluate(str(tmp_path / "new"), against=["gpt4o"])
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(UserError, match="needs tiktoken"):
        evaluate(str(tmp_path / "new"), against=["gpt4"])
    with pytest.raises(UserError, match="no text to evaluate"):
        evaluate(str(tmp_path / "new"), domains=False)


def test_user_errors(corpus, tmp_path):
    with pytest.raises(UserError, match="no file or folder"):
        train(str(tmp_path / "nothing"), str(tmp_path / "out"))
    with pytest.raises(UserError, match="is too large"):
        train(str(corpus), str(tmp_path / "out"), vocab_size=8192)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        evaluate(str(tmp_path), str(corpus))
    with pytest.raises(UserError, match="max_docs is 0"):
        evaluate(str(tmp_path), str(corpus), max_docs=0)
