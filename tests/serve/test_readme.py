"""The README's client program, as it stands there, against a server."""

import re
from pathlib import Path

import pytest


def test_the_program_of_the_readme(server, capsys):
    pytest.importorskip("openai")
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text("utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL) if "OpenAI(" in block]
    for before, after in (
        ("http://127.0.0.1:8000", server.url),
        ('api_key="none"', 'api_key="secret"'),
        ('model="quickstart"', 'model="tiny"'),
    ):
        assert code.count(before) == 1
        code = code.replace(before, after)
    exec(code, {})
    assert capsys.readouterr().out.endswith("\n")
