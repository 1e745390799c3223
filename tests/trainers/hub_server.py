"""A model hub on loopback: repositories are created, files announced, uploaded and committed as its clients do it."""

from __future__ import annotations

import base64
import json
import re
import threading
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class HubServer:
    """Keeps what is committed.

    Attributes:
        files: repository to its files, by path.
        commits: repository, message and token of each commit, in their order.
        private: whether each repository was asked for as a private one.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.commits: list[tuple[str, str, str]] = []
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                hub._answer(self, self._read())

            def do_PUT(self) -> None:
                content = self._read()
                oid = self.path.rpartition("/")[2]
                assert sha256(content).hexdigest() == oid
                hub.objects[oid] = content
                self.reply({})

            def _read(self) -> bytes:
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def reply(self, body: Any, status: int = 200) -> None:
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: Any, content: bytes) -> None:
        path = request.path.partition("?")[0]
        if path == "/api/repos/create":
            body = json.loads(content)
            repo = f"{body.get('organization') or 'tester'}/{body['name']}"
            is_private = body.get("private") or body.get("visibility") == "private"
            self.private.setdefault(repo, bool(is_private))
            status = 409 if repo in self.files else 200
            self.files.setdefault(repo, {})
            request.reply({"url": f"{self.url}/{repo}", "name": repo}, status)
        elif path == "/api/validate-yaml":
            body = json.loads(content)
            has_yaml = re.match(r"---\n.*?\n---\n", body["content"], re.DOTALL)
            errors = [] if has_yaml else [{"message": "no metadata"}]
            request.reply({"errors": errors, "warnings": []}, 200 if has_yaml else 400)
        elif found := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            large = (".safetensors", ".bin", ".parquet")
            modes = [
                {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(large) else "regular",
                 "shouldIgnore": False}
                for file in json.loads(content)["files"]
            ]  # fmt: skip
            request.reply({"files": modes})
        elif found := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            objects = [
                {**wanted, "actions": {"upload": {"href": f"{self.url}/objects/{wanted['oid']}", "header": {}}}}
                for wanted in json.loads(content)["objects"]
            ]
            request.reply({"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            self._commit(found[1], content, request.headers["Authorization"])
            number = len(self.commits)
            request.reply({"commitUrl": f"{self.url}/{found[1]}/commit/{number:040x}", "commitOid": f"{number:040x}"})
        else:
            request.reply({"error": f"no such endpoint: {path}"}, 404)

    def _commit(self, repo: str, content: bytes, token: str) -> None:
        for line in content.decode().splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "header":
                self.commits.append((repo, value["summary"], token))
            elif operation["key"] == "file":
                assert value["encoding"] == "base64"
                self.files[repo][value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                self.files[repo][value["path"]] = self.objects[value["oid"]]
            else:
                raise AssertionError(f"unknown operation {operation['key']}")
