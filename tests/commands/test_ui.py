import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from nanochat_lit import cli
from nanochat_lit.commands.serve import model_name
from nanochat_lit.engine.export import save_export
from nanochat_lit.model import GPT
from nanochat_lit.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --model EXPORT or --url URL"),
        (["--model", "x", "--url", "http://127.0.0.1:1"], "give either --model EXPORT or --url URL"),
        (["--model", "nowhere", "--port", "0"], "nowhere does not exist"),
        (["--url", "http://127.0.0.1:1", "--port", "0"], "no server responds at http://127.0.0.1:1"),
        (["--model", "nowhere", "--port", "70000"], "port is 70000; use 1 to 65535"),
        (["--model", "nowhere", "--host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ui", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert len(err.strip().splitlines()) <= 2


def test_a_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert cli.main(["ui", "--model", "nowhere", "--port", port]) == 2
    assert f"cannot listen on 127.0.0.1, port {port}" in capsys.readouterr().err


def test_name_of_an_export(tmp_path: Path) -> None:
    assert model_name(str(tmp_path / "quickstart" / "export")) == "quickstart"
    assert model_name(str(tmp_path / "my_model")) == "my_model"
    assert model_name(str(tmp_path / "my_run" / "checkpoints" / "last.ckpt")) == "my_run"
    assert model_name("/export") == "export"


def test_the_page_is_served_until_ctrl_c(
    tmp_path: Path, random_model: Callable[..., GPT], tokenizer: Tokenizer
) -> None:
    pytest.importorskip("gradio", reason="needs pip install '.[serve]'")
    save_export(tmp_path / "toy" / "export", random_model(), tokenizer)
    save_export(tmp_path / "other" / "export", random_model(), tokenizer)
    command = [sys.executable, "-m", "nanochat_lit", "ui", "--model", str(tmp_path / "toy" / "export"), "--port", "0"]
    command += ["--compare", str(tmp_path / "other" / "export")]
    proxies = dict.fromkeys(("http_proxy", "ALL_PROXY"), "socks5://127.0.0.1:9")  # Gradio's httpx would want socksio
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **proxies}) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            found = re.fullmatch(r"chat with toy and other at (http://127\.0\.0\.1:\d+)\n", line)
            assert found, line + process.stderr.read()
            with urllib.request.urlopen(found[1], timeout=30) as page:
                assert "default-src 'self'" in page.headers["Content-Security-Policy"]
                text = page.read().decode()
            assert "toy and other · nanochat-lit" in text
            assert text.count("2 layers of width 32") == 2
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
            assert process.stderr.read() == "interrupted\n"
        finally:
            process.kill()
