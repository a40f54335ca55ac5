"""Content: LFS uploads, the storage host behind a redirect, downloads with Range, Xet tokens."""

from __future__ import annotations

import hashlib
import json
import re
import time
from typing import Any

from hub_server.handler import route
from hub_server.state import HTTPError, xet_index


@route("POST", "/(?P<repo>[^/]+/[^/]+?)\\.git/info/lfs/objects/batch")
def lfs_batch(h, body, repo):
    h.user(required=True)
    h.repo(repo)
    out = []
    for o in json.loads(body)["objects"]:
        e: dict[str, Any] = {"oid": o["oid"], "size": o["size"]}
        if not h.hub.has_object(o["oid"]):
            href, head, cs = f"{h.hub.url}/_lfs/{o['oid']}", {}, h.hub.multipart_chunk
            if cs and o["size"] > cs:
                n = -(-o["size"] // cs)
                head = {"chunk_size": str(cs), **{f"{i + 1:05d}": f"{href}/{i}" for i in range(n)}}
            e["actions"] = {
                "upload": {"href": href, "header": head},
                "verify": {"href": f"{h.hub.url}/_verify/{repo}", "header": {}},
            }
        out.append(e)
    h.json({"transfer": "basic", "objects": out}, headers={"Content-Type": "application/vnd.git-lfs+json"})


@route("PUT", "/_lfs/(?P<oid>[0-9a-f]{64})(?:/(?P<part>\\d+))?")
def lfs_put(h, body, oid, part=None):
    if part is not None:
        h.hub.parts.setdefault(oid, {})[int(part)] = body
    elif hashlib.sha256(body).hexdigest() != oid:
        raise HTTPError(400, "", "sha256 mismatch")
    else:
        h.hub.objects[oid] = body
    h.send(200, b"", {"ETag": f'"{hashlib.md5(body).hexdigest()}"'})


@route("POST", "/_lfs/(?P<oid>[0-9a-f]{64})")
def lfs_complete(h, body, oid):
    parts = h.hub.parts.pop(oid, {})
    data = b"".join(parts[i] for i in sorted(parts))
    if hashlib.sha256(data).hexdigest() != oid:
        raise HTTPError(400, "", "sha256 mismatch")
    h.hub.objects[oid] = data
    h.json({})


@route("POST", "/_verify/.*")
def lfs_verify(h, body):
    o = json.loads(body)
    if not h.hub.has_object(o["oid"]):
        raise HTTPError(404, "", "not uploaded")
    h.json({})


@route("GET|HEAD", "/_cdn/(?P<oid>[0-9a-f]{64})")
def cdn(h, body, oid):
    if h.headers.get("Authorization"):
        raise HTTPError(400, "", "token leaked to the CDN host")
    _file(h, h.hub.objects[oid], {"ETag": f'"{oid}"'})


def _file(h, data: bytes, headers: dict[str, str]):
    m = re.fullmatch(r"bytes=(\d+)-(\d*)", h.headers.get("Range") or "")
    headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
    if m and h.command == "GET":
        a, b = int(m[1]), int(m[2]) if m[2] else len(data) - 1
        if a >= len(data):
            return h.send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        return h.send(
            206, data[a : b + 1], {**headers, "Content-Range": f"bytes {a}-{min(b, len(data) - 1)}/{len(data)}"}
        )
    h.send(200, data, headers)
    return None


@route("GET|HEAD", "/{R}/(?:resolve|raw)/(?P<rev>[^/]+)/(?P<path>.+)")
def resolve(h, body, repo, rev, path):
    r = h.repo(repo)
    oid = h.rev(r, rev)
    b = r.commits[oid].get(path)
    if b is None:
        raise HTTPError(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": oid})
    if b.sha256 is None:
        return _file(h, b.data or b"", {"X-Repo-Commit": oid, "ETag": f'"{b.oid}"'})
    head = {
        "X-Repo-Commit": oid,
        "X-Linked-Etag": f'"{b.sha256}"',
        "X-Linked-Size": str(b.size),
        "ETag": f'"{b.sha256}"',
    }
    if h.hub.xet_dir:
        h.hub.xet_hash.update(xet_index(h.hub.xet_dir))
    if b.sha256 in h.hub.xet_hash:
        head |= {
            "X-Xet-Hash": h.hub.xet_hash[b.sha256],
            "Link": f'<{h.hub.url}/api/models/{repo}/xet-read-token/{oid}>; rel="xet-auth"',
        }
    if h.hub.cdn:  # like the Hub: 302 to the storage host
        return h.send(302, b"", {**head, "Location": f"{h.hub.cdn_url}/_cdn/{b.sha256}"})
    _file(h, h.hub.objects[b.sha256], head)
    return None


@route("GET", "/api/models/{R}/xet-(?P<kind>read|write)-token/(?P<rev>.+)")
def xet_token(h, body, repo, kind, rev):
    h.repo(repo, write=kind == "write")
    if not h.hub.xet_dir:
        raise HTTPError(404, "", "xet is not enabled on this server")
    exp = int(time.time()) + 3600
    cas = f"local://{h.hub.xet_dir}"
    h.json(
        {"casUrl": cas, "accessToken": "x", "exp": exp},
        headers={"X-Xet-Cas-Url": cas, "X-Xet-Access-Token": "x", "X-Xet-Token-Expiration": str(exp)},
    )
