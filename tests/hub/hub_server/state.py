"""What the server holds: repositories, their commits, and failures to be injected."""

from __future__ import annotations

import glob
import hashlib
import json
import re
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".npz", ".gguf")  # the Hub's default .gitattributes
REGULAR_MAX = 10 * 1024 * 1024


def git_blob_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def lfs_pointer(oid: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n".encode()


@dataclass(frozen=True)
class Blob:
    oid: str  # git blob id (of the pointer for LFS)
    size: int
    sha256: str | None = None  # LFS only
    data: bytes | None = None  # regular only


@dataclass
class Repo:
    id: str
    private: bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)  # branches
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, str] = field(default_factory=dict)  # refs/pr/N

    def resolve(self, rev: str) -> str | None:
        for table in (self.refs, self.tags, self.pulls):
            if rev in table:
                return table[rev]
        if re.fullmatch(r"[0-9a-f]{7,40}", rev):
            return next((c for c in self.commits if c.startswith(rev)), None)
        return None

    def commit(self, branch: str, tree: dict[str, Blob], title: str, author: str, parent: str | None = None) -> str:
        parent = self.resolve(branch) or parent
        body = json.dumps([parent, title, time.time_ns(), sorted((p, b.oid) for p, b in tree.items())])
        oid = hashlib.sha1(body.encode()).hexdigest()
        self.commits[oid] = tree
        (self.pulls if branch.startswith("refs/pr/") else self.refs)[branch] = oid
        self.log.append(
            {
                "id": oid,
                "title": title,
                "message": "",
                "branch": branch,
                "parent": parent,
                "date": time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime()),
                "authors": [{"user": author}],
            }
        )
        return oid


class Request(NamedTuple):
    """What the server was asked."""

    method: str
    path: str
    status: int
    host: str
    authorization: str | None


@dataclass
class Fault:
    pattern: re.Pattern[str]
    status: int | None = None  # answer with this status
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"error":"injected"}'
    drop_after: int | None = None  # send/receive this many body bytes, then RST the connection
    corrupt: bool = False  # flip one byte in the middle of a download
    truncate: int | None = None  # claim full length but close cleanly after N bytes
    delay: float = 0.0
    meanwhile: Callable[[], None] | None = None  # what somebody else does before the answer
    times: int = 1  # -1: for ever


class HTTPError(Exception):
    def __init__(self, status: int, code: str = "", message: str = "", headers: dict[str, str] | None = None):
        self.status, self.code, self.message, self.headers = status, code, message, headers or {}


def xet_index(cas_dir: str) -> dict[str, str]:
    """sha256 -> xet file hash, from the shards hf_xet wrote under a local:// CAS directory."""

    def hexs(b: bytes) -> str:  # four little-endian u64
        return b"".join(b[i : i + 8][::-1] for i in range(0, 32, 8)).hex()

    out: dict[str, str] = {}
    for path in glob.glob(f"{cas_dir}/**/*.mdb", recursive=True):
        d = Path(path).read_bytes()
        i = 48  # header: tag[32] version[8] footer_size[8]
        while i + 48 <= len(d) and d[i : i + 32] != b"\xff" * 32:  # bookend closes the file-info section
            h, (flags, n) = d[i : i + 32], struct.unpack_from("<II", d, i + 32)
            i += 48 * (1 + n + (n if flags & 0x80000000 else 0))
            if flags & 0x40000000:  # metadata extension: sha256[32] + 16 unused
                out[hexs(d[i : i + 32])] = hexs(h)
                i += 48
    return out
