"""A stand-in for the Hugging Face hub with models in memory: what its client asks for in downloads, uploads and commits."""

import base64
import hashlib
import http.server
import json
import re
import urllib.parse
from dataclasses import dataclass, field

TOKEN = "hf_writer"


@dataclass
class Model:
    """A repository: files by path, of each branch, and every commit that was made."""

    private: bool = False
    gated: bool = False
    branches: dict = field(default_factory=lambda: {"main": {}})
    commits: dict = field(default_factory=dict)

    def files(self, revision):
        return self.branches.get(revision, self.commits.get(revision))

    def commit_of(self, revision):
        """The id of a commit is a checksum of its files."""
        listing = [
            (name, hashlib.sha256(content).hexdigest()) for name, content in sorted(self.files(revision).items())
        ]
        commit = hashlib.sha1(json.dumps([revision, listing]).encode()).hexdigest()
        self.commits[commit] = dict(self.files(revision))
        return revision if revision in self.commits else commit


def is_large(name):
    return name.endswith((".safetensors", ".model"))


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.begin()
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+?))?/?", path):
            name, kind, revision = found.groups()
            return self.on_model(name, revision or "main", self.tree if kind == "tree" else self.about)
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.on_model(found[1], found[2], lambda *about: self.send_file(*about, found[3]))
        return self.answer(404)

    def do_POST(self):
        path = self.begin()
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.server.busy:
            return self.answer(503)
        if self.token() != TOKEN:
            return self.answer(401, error="Invalid username or password.")
        if path == "/api/validate-yaml":
            return self.send_json({"warnings": [{"message": "license is missing"}], "errors": []})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        found = re.fullmatch(r"/(?:api/models/)?([^/]+/[^/]+?)(?:\.git)?/(info/lfs/objects|[a-z]+)/(.+)", path)
        model = self.server.models.get(found[1])
        if model is None:
            return self.answer(404, {"X-Error-Code": "RepoNotFound"})
        if found[2] == "branch":
            model.branches.setdefault(found[3], dict(model.branches["main"]))
            return self.send_json({})
        if found[2] == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "lfs" if is_large(f["path"]) else "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self.send_json({"files": files})
        if found[2] == "commit":
            return self.commit(found[1], model, found[3], [json.loads(line) for line in body.splitlines()])
        objects = [
            {
                **about,
                "authenticated": True,
                "actions": {"upload": {"href": f"{self.server.url}/upload/{about['oid']}"}},
            }
            for about in json.loads(body)["objects"]
        ]
        return self.send_json({"transfer": "basic", "objects": objects})

    def do_PUT(self):
        path = self.begin()
        content = self.rfile.read(int(self.headers["Content-Length"]))
        assert path == f"/upload/{hashlib.sha256(content).hexdigest()}"
        self.server.uploads[path.rpartition("/")[2]] = content
        return self.send_json({})

    def begin(self):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.server.seen.append((self.command, path, self.token()))
        return path

    def token(self):
        return (self.headers["Authorization"] or "").removeprefix("Bearer ") or None

    def create(self, asked):
        if asked["organization"] != "me":
            return self.answer(403, error="You don't have the rights to create a model under this namespace")
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.server.models:
            return self.send_json({"error": "exists", "url": f"{self.server.url}/{name}"}, 409)
        self.server.models[name] = Model(private=asked.get("visibility") == "private" or asked.get("private") is True)
        return self.send_json({"url": f"{self.server.url}/{name}"})

    def commit(self, name, model, branch, lines):
        files = model.branches[branch]
        for line in lines:
            about = line["value"]
            if line["key"] == "file":
                files[about["path"]] = base64.b64decode(about["content"])
            elif line["key"] == "lfsFile":
                files[about["path"]] = self.server.uploads[about["oid"]]
            elif line["key"] == "deletedFile":
                del files[about["path"]]
        commit = model.commit_of(branch)
        self.server.messages.append(lines[0]["value"]["summary"])
        return self.send_json(
            {"success": True, "commitOid": commit, "commitUrl": f"{self.server.url}/{name}/commit/{commit}"}
        )

    def on_model(self, name, revision, answer):
        model = self.server.models.get(name)
        if self.server.busy:
            return self.answer(503)
        if model is None or (model.private and self.token() != TOKEN):
            status = 401 if self.token() is None else 404
            return self.answer(status, {"X-Error-Code": "RepoNotFound"}, error="Repository not found")
        if model.files(revision) is None:
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"}, error="Invalid rev id")
        return answer(name, model, revision)

    def about(self, name, model, revision):
        commit = model.commit_of(revision)
        siblings = [{"rfilename": path} for path in model.files(revision)]
        return self.send_json({"id": name, "sha": commit, "private": model.private, "tags": [], "siblings": siblings})

    def tree(self, name, model, revision):
        entries = []
        for path, content in model.files(revision).items():
            entry = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            if is_large(path):
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            entries.append(entry)
        return self.send_json(entries)

    def send_file(self, name, model, revision, path):
        if model.gated and self.token() != TOKEN:
            return self.answer(401, {"X-Error-Code": "GatedRepo"}, error="Access to this model is restricted")
        content = model.files(revision).get(path)
        if content is None:
            return self.answer(404, {"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": model.commit_of(revision)}
        return self.answer(200, headers, content)

    def send_json(self, content, status=200):
        return self.answer(status, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def answer(self, status, headers=None, body=b"", error=""):
        headers = {**(headers or {}), **({"X-Error-Message": error} if error else {})}
        self.send_response(status)
        for key, value in {**headers, "Content-Length": len(body)}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


class Server(http.server.ThreadingHTTPServer):
    """Keeps `models` by OWNER/NAME; `seen` has (method, path, token) of every request."""

    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.models, self.uploads, self.seen, self.messages, self.busy = {}, {}, [], [], False
        self.url = f"http://127.0.0.1:{self.server_port}"

    def add(self, name, folder, **about):
        """Put a folder's files into a new model."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self.models[name] = Model(branches={"main": files}, **about)
        return self.models[name]
