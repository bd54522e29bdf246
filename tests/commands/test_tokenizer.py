import json

import pytest

from nanochat_lit.commands.tokenizer import evaluate, train
from nanochat_lit.common.errors import UserError
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
    assert "GPT-2 left out" in table or "gpt2" in table
    evaluate(str(tmp_path / "new"), [str(corpus / "b.jsonl")], json=True)
    (result, *_) = json.loads(capsys.readouterr().out.splitlines()[-1])
    texts = [json.loads(line)["text"] for line in (corpus / "b.jsonl").read_text().splitlines()]
    assert result["num_bytes"] == sum(len(text) for text in texts)
    assert result["num_tokens"] == sum(len(tokenizer.encode(text)) for text in texts)


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
