"""A web server of a folder that fails as it is told to: as the hub (with an API and redirects), or as a plain mirror."""

import hashlib
import http.server
import json
import re
import time
import urllib.parse
from dataclasses import dataclass, field

CHUNK = 1 << 14


@dataclass
class Seen:
    """What a request looked like."""

    path: str
    range: str | None
    token: str | None
    method: str = "GET"
    status: int = 0


@dataclass
class Faults:
    """What goes wrong, by name of the file; each is used up by one answer.

    "drop": the connection ends in the middle; "truncate": half of the file, as if that were all; "wrong": a byte is another;
    "no_range": the whole file whatever is asked for; a number is a status, a pair a status and a Retry-After.
    """

    by_name: dict = field(default_factory=dict)

    def next(self, name):
        waiting = self.by_name.get(name) or self.by_name.get("*") or []
        return waiting.pop(0) if waiting else None


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(url.path)
        self.seen = Seen(path, self.headers.get("Range"), self.headers.get("Authorization"), self.command)
        self.server.seen.append(self.seen)
        if path.startswith("/api/datasets/"):
            return self.list_files(path, urllib.parse.parse_qs(url.query))
        hub = re.fullmatch(r"/datasets/[^/]+/[^/]+/resolve/[^/]+/(.+)", path)
        name = hub[1] if hub else path.removeprefix("/cdn/").lstrip("/")
        fault = None if hub or self.command == "HEAD" else self.server.faults.next(name)
        file = self.server.folder / name
        if isinstance(fault, int | tuple) or not file.is_file():
            status, wait = fault if isinstance(fault, tuple) else (fault or 404, None)
            return self.answer(status, {"Retry-After": str(wait)} if wait is not None else {})
        if hub:  # as the hub does: the checksum first, the bytes from another server
            location = f"{self.server.cdn}/cdn/{urllib.parse.quote(name)}"
            about = {"X-Linked-ETag": f'"{sha256(file.read_bytes())}"', "X-Linked-Size": str(file.stat().st_size)}
            return self.answer(302, {"Location": self.server.redirect or location, **about})
        return self.send_file(file, fault)

    def send_file(self, file, fault):
        content = file.read_bytes()
        headers = {"ETag": f'"{file.stat().st_mtime_ns:x}-{len(content):x}"'}
        start, status = 0, 200
        asked = re.fullmatch(r"bytes=(\d+)-", self.seen.range or "")
        if asked and fault != "no_range":
            start, status = int(asked[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            if start >= len(content):
                return self.answer(416, {})
        if fault == "wrong":
            place = start + (len(content) - start) // 2
            content = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        body = content[start:]
        if fault == "truncate":
            body = body[: len(body) // 2]
        self.answer(status, {**headers, "Content-Length": str(len(body))}, end=False)
        if self.command == "HEAD":
            return None
        if fault == "drop":
            body = body[: len(body) // 2]
        for place in range(0, len(body), CHUNK):
            if self.server.bytes_per_s:
                time.sleep(CHUNK / self.server.bytes_per_s)
            self.wfile.write(body[place : place + CHUNK])
        if fault == "drop":
            self.close_connection = True
            self.connection.close()
        return None

    def list_files(self, path, query):
        prefix = path.partition("/tree/main")[2].strip("/")
        names = sorted(str(p.relative_to(self.server.folder)) for p in self.server.folder.rglob("*") if p.is_file())
        names = [name for name in names if name.startswith(prefix)]
        page = int(query.get("cursor", ["0"])[0])
        entries = []
        for name in names[page * 3 : page * 3 + 3]:
            content = (self.server.folder / name).read_bytes()
            lfs = {"oid": sha256(content), "size": len(content), "pointerSize": 130}
            entries.append({"type": "file", "path": name, "size": len(content), "oid": "0" * 40, "lfs": lfs})
        body = json.dumps(entries).encode()
        more = {}
        if len(names) > page * 3 + 3:
            more["Link"] = f'<{self.server.url}{path}?recursive=true&cursor={page + 1}>; rel="next"'
        self.answer(200, {"Content-Length": str(len(body)), **more}, end=False)
        self.wfile.write(body)

    def answer(self, status, headers, end=True):
        self.seen.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if end:
            self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass


class Server(http.server.ThreadingHTTPServer):
    """Serves `folder` under `url`."""

    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.faults, self.seen, self.bytes_per_s, self.redirect = folder, Faults(), [], None, None
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.cdn = f"http://localhost:{self.server_port}"  # another host, as far as a client can see

    def handle_error(self, request, client_address):
        pass  # clients that go away are part of the tests

    def asked(self, name):
        """The requests for the bytes of a file."""
        found = (seen for seen in self.seen if seen.method == "GET" and "/resolve/" not in seen.path)
        return [seen for seen in found if seen.path.endswith(name)]


def sha256(content):
    return hashlib.sha256(content).hexdigest()
