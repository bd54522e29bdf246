"""Downloads from a server on this machine that fails, cuts short and lies."""

import functools
import hashlib
import http.server
import itertools
import sys
import threading
import time
import types

import pytest

from nanochat_lit.common.downloads import NUM_ATTEMPTS, download, locked
from nanochat_lit.common.errors import UserError

CONTENT = b"a bundle " * 300_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    """Answers the requests as `script` says: a status, or "cut" for half a file; then always 200."""

    def do_GET(self):
        self.server.num_requests += 1
        answer = self.server.script.pop(0) if self.server.script else 200
        self.send_response(200 if answer == "cut" else answer)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        if answer in (200, "cut"):
            self.wfile.write(CONTENT if answer == 200 else CONTENT[: len(CONTENT) // 2])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    server.script, server.num_requests = [], 0
    server.url = f"http://127.0.0.1:{server.server_port}/bundle"
    thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_arrives(server, tmp_path):
    download(server.url, tmp_path / "deep" / "file", SHA256)
    assert (tmp_path / "deep" / "file").read_bytes() == CONTENT


def test_failures_are_tried_again_after_growing_pauses(server, tmp_path):
    server.script = [503, "cut", 429, 500]
    pauses = []
    download(server.url, tmp_path / "file", SHA256, pauses.append)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert pauses == [1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize(
    ("script", "num_requests", "message"),
    [
        ([404], 1, "tried once; .*404"),
        (["cut"] * NUM_ATTEMPTS, NUM_ATTEMPTS, "tried 5 times; .*ended after 1,350,000 of 2,700,000 bytes"),
    ],
)
def test_nothing_is_left_of_a_failure(server, tmp_path, script, num_requests, message):
    server.script = script
    with pytest.raises(UserError, match=message):
        download(server.url, tmp_path / "file", pause=lambda _: None)
    assert server.num_requests == num_requests
    assert list(tmp_path.iterdir()) == []


def test_another_file_is_not_kept(server, tmp_path):
    (tmp_path / "file").write_text("the old one")
    with pytest.raises(UserError, match=f"sha256 {SHA256}, not 00"):
        download(server.url, tmp_path / "file", "00" * 32, lambda _: None)
    assert (tmp_path / "file").read_text() == "the old one"


def test_no_server_and_no_scheme(tmp_path):
    with pytest.raises(UserError, match="tried 5 times"):
        download("http://127.0.0.1:9/none", tmp_path / "file", pause=lambda _: None)
    with pytest.raises(UserError, match="neither http nor https"):
        download("file:///etc/passwd", tmp_path / "file")


def test_one_at_a_time_is_in_a_lock(tmp_path):
    """Threads stand for processes: each opens the file itself, and that is what the lock goes by."""
    spans = []

    def hold():
        with locked(tmp_path / "lock"):
            start = time.monotonic()
            time.sleep(0.05)
            spans.append((start, time.monotonic()))

    threads = [threading.Thread(target=hold) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(spans) == 3
    assert all(after[0] >= before[1] for before, after in itertools.pairwise(spans))


def test_the_lock_where_there_is_no_fcntl(tmp_path, monkeypatch):
    """Windows' call gives up after ten seconds and is asked again."""
    answers = [OSError("held"), OSError("held"), None]

    def locking(number, mode, num_bytes):
        assert (mode, num_bytes) == (1, 1)
        if (answer := answers.pop(0)) is not None:
            raise answer

    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(locking=locking, LK_LOCK=1))
    with locked(tmp_path / "lock"):
        assert answers == []
