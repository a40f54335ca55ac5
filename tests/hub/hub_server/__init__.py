"""A small local server that speaks the Hub's HTTP API (models only).

with FakeHub(users={"hf_good": "me"}) as hub: clients reach it with the environment `hub.env(home, token)`;
`hub.fault(pattern, ...)` injects failures, `hub.file(repo, path)` reads back what was committed.
"""

from __future__ import annotations

import hashlib
import re
import threading
from http.server import ThreadingHTTPServer
from typing import Any

from hub_server import api, storage  # noqa: F401  (they fill the table of routes)
from hub_server.handler import Handler
from hub_server.state import Blob, Fault, Repo, Request, git_blob_oid


class FakeHub:
    def __init__(
        self,
        users: dict[str, str] | None = None,
        port: int = 0,
        cdn: bool = True,
        multipart_chunk: int | None = None,
        xet_dir: str | None = None,
    ):
        self.users = users or {"hf_good": "me", "hf_other": "other"}
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.damage_commits = False  # state another digest than the one that was committed
        self.cdn, self.multipart_chunk, self.xet_dir = cdn, multipart_chunk, xet_dir
        self.xet_hash: dict[str, str] = {}
        handler = type("H", (Handler,), {"hub": self})
        self.httpd = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.httpd.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.httpd.server_address[1]}"
        # a *different host name*, as on the real Hub: with the same host the client follows the redirect at HEAD time
        # and loses X-Repo-Commit
        self.cdn_url = self.url.replace("127.0.0.1", "localhost")

    def reset(self) -> None:
        """Forget everything but the users."""
        with self.lock:
            for held in (self.repos, self.objects, self.parts, self.requests, self.faults, self.xet_hash):
                held.clear()
            self.cdn, self.multipart_chunk, self.damage_commits = True, None, False

    def add(self, repo: Repo, files: dict[str, bytes], *, lfs: bool = False) -> None:
        """Commit files to main that no client would: of any name and content."""
        tree = dict(repo.commits[repo.refs["main"]])
        for path, data in files.items():
            oid = hashlib.sha256(data).hexdigest()
            self.objects[oid] = data
            tree[path] = Blob(git_blob_oid(data), len(data), oid if lfs else None, None if lfs else data)
        repo.commit("main", tree, "added", "somebody")

    def has_object(self, oid: str) -> bool:
        return oid in self.objects or bool(self.xet_dir)

    def fault(self, pattern: str, **kw: Any) -> None:
        self.faults.append(Fault(re.compile(pattern), **kw))

    def take_fault(self, line: str) -> Fault | None:
        with self.lock:
            for f in self.faults:
                if f.times != 0 and f.pattern.search(line):
                    f.times -= 1
                    return f
        return None

    def file(self, repo: str, path: str, rev: str = "main") -> bytes:
        r = self.repos[repo]
        b = r.commits[r.resolve(rev) or ""][path]
        return self.objects[b.sha256] if b.sha256 else (b.data or b"")

    def env(self, home: str, token: str | None = "hf_good", xet: bool = False) -> dict[str, str]:
        e = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }
        if not xet:
            e["HF_HUB_DISABLE_XET"] = "1"
        if token:
            e["HF_TOKEN"] = token
        return e

    def __enter__(self) -> "FakeHub":
        threading.Thread(target=self.httpd.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *a: Any) -> None:
        self.httpd.shutdown()
        self.httpd.server_close()
