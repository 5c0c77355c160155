"""A local stand-in of the Hub's HTTP API that checks every request it gets, and can break off an upload."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_" + "t" * 30


class StandIn:
    """What the Hub would have after the requests so far.

    Attributes:
        repos: by id, whether it is private.
        branches: (repository, branch).
        blobs: large files by SHA-256.
        commits: by (repository, branch), the files of the last commit.
        wrong: what was wrong with requests; a test asserts that it is empty.
        interruptions: how many uploads of large files are broken off in the middle.
    """

    def __init__(self) -> None:
        self.repos: dict[str, bool] = {}
        self.branches: set[tuple[str, str]] = set()
        self.blobs: dict[str, bytes] = {}
        self.commits: dict[tuple[str, str], dict[str, bytes]] = {}
        self.messages: list[str] = []
        self.uploads: list[str] = []
        self.wrong: list[str] = []
        self.interruptions = 0
        hub = self

        class Handler(_Handler):
            stand_in = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class _Handler(BaseHTTPRequestHandler):
    stand_in: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, what: str, status: int = 400) -> None:
        self.stand_in.wrong.append(f"{self.command} {self.path}: {what}")
        self.answer({"error": what}, status)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self) -> None:
        if self.path == "/api/agent-harnesses":  # the client asks once a day what programs may be driving it
            return self.answer({})
        self.refuse("no such address", 404)

    def do_PUT(self) -> None:
        hub, _, digest = self.stand_in, *self.path.rsplit("/", 1)
        size = int(self.headers["Content-Length"])
        if hub.interruptions:
            hub.interruptions -= 1
            self.rfile.read(size // 2)
            self.close_connection = True
            self.connection.close()
            return
        content = self.rfile.read(size)
        if hashlib.sha256(content).hexdigest() != digest:
            return self.refuse("the bytes are not those of the SHA-256")
        if "Authorization" in self.headers:
            return self.refuse("the token was sent to the storage")
        hub.blobs[digest] = content
        hub.uploads.append(digest)
        self.answer({})

    def do_POST(self) -> None:
        body, hub = self.body(), self.stand_in
        # Anyone may have a card checked.
        if self.path != "/api/validate-yaml" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse("no token, or another one", 401)
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts == ["api", "repos", "create"]:
            wanted = json.loads(body)
            repo = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            if repo in hub.repos:
                return self.answer({"error": "exists", "url": f"{hub.url}/{repo}"}, 409)
            hub.repos[repo] = wanted.get("visibility") == "private" or bool(wanted.get("private"))
            hub.branches.add((repo, "main"))
            return self.answer({"url": f"{hub.url}/{repo}", "name": repo, "id": "1"})
        if parts == ["api", "validate-yaml"]:
            return self.validate(json.loads(body))
        if parts[-4:] == ["info", "lfs", "objects", "batch"]:
            return self.batch("/".join(parts[:2]).removesuffix(".git"), json.loads(body))
        repo = "/".join(parts[2:4])
        if parts[:2] != ["api", "models"] or repo not in hub.repos:
            return self.refuse("no such address", 404)
        if parts[4] == "branch":
            known = (repo, parts[5]) in hub.branches
            hub.branches.add((repo, parts[5]))
            return self.answer({"error": "exists"} if known else {}, 409 if known else 200)
        if (repo, parts[5]) not in hub.branches:
            return self.refuse("no such branch", 404)
        if parts[4] == "preupload":
            files = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith((".safetensors", ".png")) else "regular"}
                for f in files
            ]
            return self.answer({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        if parts[4] == "commit":
            return self.commit(repo, parts[5], body)
        self.refuse("no such address", 404)

    def batch(self, repo: str, wanted: dict[str, Any]) -> None:
        hub = self.stand_in
        if repo not in hub.repos or wanted["operation"] != "upload" or wanted["hash_algo"] != "sha256":
            return self.refuse(f"a bad batch for {repo}")
        objects = []
        for file in wanted["objects"]:
            there = file["oid"] in hub.blobs
            upload = {"upload": {"href": f"{hub.url}/storage/{file['oid']}"}}
            objects.append({**file, **({} if there else {"actions": upload})})
        self.answer({"transfer": "basic", "objects": objects})

    def validate(self, card: dict[str, Any]) -> None:
        """As the Hub: the metadata is YAML, the licence is known or named, the model index is one that can be shown."""
        _, front, text = card["content"].split("---\n", 2)
        data = yaml.safe_load(front)
        errors = []
        if data.get("license") == "other" and not {"license_name", "license_link"} <= set(data):
            errors.append({"message": "license: other needs license_name and license_link"})
        for model in data.get("model-index", []):
            for result in model["results"]:
                if not (result["task"]["type"] and result["dataset"]["type"] and result["dataset"]["name"]):
                    errors.append({"message": "model-index: a result needs a task and a dataset"})
                if not all(isinstance(metric["value"], int | float) for metric in result["metrics"]):
                    errors.append({"message": "model-index: a metric needs a value"})
        if not text.strip() or card["repoType"] != "model":
            errors.append({"message": "no text"})
        if errors:
            self.stand_in.wrong += [error["message"] for error in errors]
        self.answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def commit(self, repo: str, branch: str, body: bytes) -> None:
        hub, files = self.stand_in, {}
        lines = [json.loads(line) for line in body.splitlines()]
        if [line["key"] for line in lines].count("header") != 1:
            return self.refuse("a commit has one header")
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                hub.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                blob = hub.blobs.get(value["oid"])
                if blob is None or len(blob) != value["size"]:
                    return self.refuse(f"{value['path']} was never uploaded")
                files[value["path"]] = blob
            else:
                return self.refuse(f"an unknown operation {line['key']}")
        hub.commits[(repo, branch)] = files
        url = f"{hub.url}/{repo}/commit/{'0' * 40}"
        self.answer(
            {"success": True, "commitOid": "0" * 40, "commitUrl": url, "hookOutput": "", "pullRequestUrl": None}
        )
