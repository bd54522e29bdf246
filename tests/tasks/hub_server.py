"""A stand-in for the Hugging Face hub: serves the data sets in a folder by the addresses that its clients ask for."""

import hashlib
import http.server
import json
import re
import urllib.parse

COMMIT = "c" * 40


class Handler(http.server.BaseHTTPRequestHandler):
    """Data sets lie in ORGANISATION/NAME; of each there is one commit."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.server.seen.append((self.command, path))
        if self.command == "GET" and "/resolve/" in path and self.server.statuses:
            return self.answer(self.server.statuses.pop(0))
        if found := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            return self.send_file(*found.groups())
        if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/[^/]+/?(.*)", path):
            return self.send_json(self.entries(*found.groups()))
        if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(/revision/[^/]+)?", path):
            return self.send_about(found[1])
        return self.answer(404)

    def do_HEAD(self):
        self.do_GET()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.server.seen.append((self.command, path))
        found = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/paths-info/[^/]+", path)
        if found is None:
            return self.answer(404)
        is_json = self.headers["Content-Type"].startswith("application/json")
        wanted = json.loads(body)["paths"] if is_json else urllib.parse.parse_qs(body).get("paths", [])
        return self.send_json([entry for entry in self.entries(found[1]) if entry["path"] in wanted])

    def send_file(self, name, place):
        file = self.server.folder / name / place
        if not file.is_file():
            return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        content = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked is None:
            return self.answer(200, headers, content)
        start, end = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        return self.answer(206, headers, content[start : end + 1])

    def send_about(self, name):
        if not (self.server.folder / name).is_dir():
            return self.answer(401, {"X-Error-Code": "RepoNotFound"})
        files = [{"rfilename": entry["path"]} for entry in self.entries(name) if entry["type"] == "file"]
        return self.send_json({"id": name, "sha": COMMIT, "private": False, "tags": [], "siblings": files})

    def entries(self, name, under=""):
        base = self.server.folder / name
        for path in sorted((base / under).rglob("*")):
            place, oid = str(path.relative_to(base)), hashlib.sha1(path.name.encode()).hexdigest()
            if path.is_dir():
                yield {"type": "directory", "path": place, "oid": oid, "size": 0}
            else:
                yield {"type": "file", "path": place, "oid": oid, "size": path.stat().st_size}

    def send_json(self, content):
        content = content if isinstance(content, dict) else list(content)
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def answer(self, status, headers=None, body=b""):
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": len(body)}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


class Server(http.server.ThreadingHTTPServer):
    """Serves `folder` under `url`; answers to requests for files begin with `statuses`."""

    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.seen, self.statuses = folder, [], []
        self.url = f"http://127.0.0.1:{self.server_port}"
