"""HTTP plumbing: bodies, answers, faults, who asks; routes are found in `ROUTES`."""

from __future__ import annotations

import json
import re
import socket
import struct
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_server.state import Fault, HTTPError, Repo, Request

if TYPE_CHECKING:
    from hub_server import FakeHub


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: "FakeHub"

    # ---- plumbing
    def log_message(self, *a: Any) -> None: ...

    def _log(self, status: int) -> None:
        """Note who asked what of which host; status 0: the connection was reset instead of an answer."""
        headers = self.headers
        self.hub.requests.append(
            Request(self.command, self.path, status, headers.get("Host", ""), headers.get("Authorization"))
        )

    def _rst(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        with suppress(OSError):
            self.connection.close()

    def _body(self, fault: Fault | None) -> bytes | None:
        if "chunked" in (self.headers.get("Transfer-Encoding") or ""):
            out = b""
            while True:
                n = int(self.rfile.readline().split(b";")[0], 16)
                out += self.rfile.read(n)
                self.rfile.readline()
                if n == 0:
                    return out
                if fault and fault.drop_after is not None and len(out) >= fault.drop_after:
                    self._rst()
                    return None
        n = int(self.headers.get("Content-Length") or 0)
        if fault and fault.drop_after is not None and n > fault.drop_after:
            self.rfile.read(fault.drop_after)
            self._rst()
            return None
        return self.rfile.read(n)

    def send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        fault = self.fault
        self._log(status)
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), **(headers or {})}
        for k, v in headers.items():
            self.send_header(k, v)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault and fault.corrupt and body:
            i = len(body) // 2
            body = body[:i] + bytes([body[i] ^ 0xFF]) + body[i + 1 :]
        if fault and (fault.drop_after is not None or fault.truncate is not None):
            n = fault.drop_after if fault.drop_after is not None else fault.truncate
            self.wfile.write(body[:n])
            self.wfile.flush()
            if fault.drop_after is not None:
                time.sleep(0.05)
                self._rst()
            else:
                self.close_connection = True
            return
        self.wfile.write(body)

    def json(self, obj: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send(status, json.dumps(obj).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _handle(self) -> None:
        hub = self.hub
        url = urlsplit(self.path)
        self.q = parse_qs(url.query)
        self.fault = fault = hub.take_fault(f"{self.command} {self.path}")
        if fault and fault.delay:
            time.sleep(fault.delay)
        if fault and fault.meanwhile:
            fault.meanwhile()
        if fault and fault.drop_after is not None and self.command == "HEAD":
            self._log(0)
            self._rst()
            return None
        body = self._body(fault if self.command in ("POST", "PUT") else None)
        if body is None:
            self._log(0)
            return None
        try:
            if fault and fault.status is not None:
                return self.send(fault.status, fault.body, {"Content-Type": "application/json", **fault.headers})
            for method, rx, fn in ROUTES:
                m = rx.fullmatch(unquote(url.path) if "%2F" not in url.path.upper() else url.path)
                if m and self.command in method.split("|"):
                    with hub.lock:
                        return fn(self, body, **{k: unquote(v) if v else v for k, v in m.groupdict().items()})
            raise HTTPError(404, "", f"no such route {self.command} {url.path}")
        except HTTPError as e:
            h = dict(e.headers)
            if e.code:
                h["X-Error-Code"] = e.code
            if e.message:
                h["X-Error-Message"] = e.message
            self.json({"error": e.message}, e.status, h)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle  # noqa: N815  (http.server's names)

    # ---- auth, lookup
    def user(self, required: bool = False) -> str | None:
        auth = self.headers.get("Authorization") or ""
        if not auth:
            if required:
                raise HTTPError(401, "", "Invalid username or password.")
            return None
        tok = auth.removeprefix("Bearer ").strip()
        if tok not in self.hub.users:
            raise HTTPError(401, "", "Invalid credentials in Authorization header")
        return self.hub.users[tok]

    def repo(self, repo: str, write: bool = False) -> Repo:
        user = self.user(required=write)
        r = self.hub.repos.get(repo)
        if r is None or (r.private and user != repo.split("/")[0]):
            if user is None:  # as on the Hub: anonymous users get a 401 for a missing or private repo
                raise HTTPError(401, "RepoNotFound", "Invalid username or password.")
            raise HTTPError(404, "RepoNotFound", "Repository not found")
        if write and user != repo.split("/")[0]:
            raise HTTPError(403, "", f"you don't have the rights to write to {repo}")
        return r

    def rev(self, r: Repo, rev: str) -> str:
        oid = r.resolve(rev)
        if oid is None:
            raise HTTPError(404, "RevisionNotFound", f"Invalid rev id: {rev}")
        return oid


ROUTES: list[tuple[str, re.Pattern[str], Any]] = []
R = r"(?P<repo>[^/]+/[^/]+)"


def route(method: str, pattern: str):
    def deco(fn):
        ROUTES.append((method, re.compile(pattern.replace("{R}", R)), fn))
        return fn

    return deco
