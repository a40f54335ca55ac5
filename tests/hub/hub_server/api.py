"""The Hub's API: users, repositories, branches, tags, commits and pull requests."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs

import yaml

from hub_server.handler import route
from hub_server.state import LFS_SUFFIXES, REGULAR_MAX, Blob, HTTPError, Repo, git_blob_oid, lfs_pointer


@route("GET", "/api/whoami-v2")
def whoami(h, body):
    name = h.user(required=True)
    h.json(
        {
            "type": "user",
            "name": name,
            "fullname": name,
            "orgs": [],
            "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}},
        }
    )


@route("POST", "/api/repos/create")
def create(h, body):
    user, p = h.user(required=True), json.loads(body)
    rid = f"{p.get('organization') or user}/{p['name']}"
    if rid.split("/")[0] != user:
        raise HTTPError(
            403, "", f'You don\'t have the rights to create a model under the namespace "{rid.split("/")[0]}"'
        )
    url = f"{h.hub.url}/{rid}"
    if rid in h.hub.repos:
        return h.json({"error": "You already created this model repo", "url": url}, 409)
    r = h.hub.repos[rid] = Repo(rid, private=p.get("visibility") == "private" or bool(p.get("private")))
    ga = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
    r.commit("main", {".gitattributes": Blob(git_blob_oid(ga), len(ga), data=ga)}, "initial commit", user)
    h.json({"url": url, "name": rid, "id": rid})
    return None


@route("DELETE", "/api/repos/delete")
def delete(h, body):
    p = json.loads(body)
    user = h.user(required=True)
    rid = f"{p.get('organization') or user}/{p['name']}"
    h.repo(rid, write=True)
    del h.hub.repos[rid]
    h.json({})


@route("POST", "/api/validate-yaml")
def validate_yaml(h, body):
    text = json.loads(body)["content"]
    m = re.match(r"^\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.S)
    if not m:
        return h.json({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
    try:
        data = yaml.safe_load(m.group(1))
    except yaml.YAMLError as e:
        return h.json({"errors": [{"message": f"YAML Metadata Error: {e}"}], "warnings": []}, 400)
    errors = []
    if not isinstance(data, dict):
        errors.append({"message": "YAML metadata must be a mapping"})
        data = {}
    for k in ("tags", "datasets"):
        if k in data and not (isinstance(data[k], (list, str))):
            errors.append({"message": f'"{k}" must be an array'})
    if "model-index" in data:
        for i, e in enumerate(data["model-index"]):
            if not e.get("name"):
                errors.append({"message": f'"model-index[{i}].name" is required'})
            for j, res in enumerate(e.get("results", [])):
                for key in ("task", "dataset", "metrics"):
                    if key not in res:
                        errors.append({"message": f'"model-index[{i}].results[{j}].{key}" is required'})
    h.json({"errors": errors, "warnings": []}, 400 if errors else 200)
    return None


def _info(h, r: Repo, oid: str):
    tree = r.commits[oid]
    card: dict[str, Any] = {}
    if "README.md" in tree and tree["README.md"].data is not None:
        m = re.match(r"^---[ \t]*\n(.*?)\n---", tree["README.md"].data.decode(), re.S)
        if m:
            with suppress(yaml.YAMLError):
                card = yaml.safe_load(m.group(1)) or {}
    sib = []
    for p, b in sorted(tree.items()):
        s: dict[str, Any] = {"rfilename": p}
        if "blobs" in h.q:
            s |= {"size": b.size, "blobId": b.oid}
            if b.sha256:
                s["lfs"] = {"sha256": b.sha256, "size": b.size, "pointerSize": len(lfs_pointer(b.sha256, b.size))}
        sib.append(s)
    return {
        "_id": "0" * 24,
        "id": r.id,
        "modelId": r.id,
        "sha": oid,
        "private": r.private,
        "disabled": False,
        "gated": False,
        "downloads": 0,
        "likes": 0,
        "tags": list(card.get("tags") or []),
        "library_name": card.get("library_name"),
        "cardData": card,
        "siblings": sib,
        "lastModified": r.log[-1]["date"],
        "createdAt": r.log[0]["date"],
    }


@route("GET", "/api/models/{R}")
def info(h, body, repo):
    r = h.repo(repo)
    h.json(_info(h, r, r.refs["main"]))


@route("GET", "/api/models/{R}/revision/(?P<rev>.+)")
def info_rev(h, body, repo, rev):
    r = h.repo(repo)
    h.json(_info(h, r, h.rev(r, rev)))


def _entry(p: str, b: Blob) -> dict[str, Any]:
    e: dict[str, Any] = {"type": "file", "path": p, "oid": b.oid, "size": b.size}
    if b.sha256:
        e["lfs"] = {"oid": b.sha256, "size": b.size, "pointerSize": len(lfs_pointer(b.sha256, b.size))}
    return e


@route("GET", "/api/models/{R}/tree/(?P<rev>[^/]+)(?:/(?P<path>.*))?")
def tree(h, body, repo, rev, path=None):
    r = h.repo(repo)
    oid = h.rev(r, rev)
    t = r.commits[oid]
    pre = path.strip("/") + "/" if path and path.strip("/") else ""
    names = [p for p in sorted(t) if p.startswith(pre)]
    if pre and not names:
        raise HTTPError(404, "EntryNotFound", f'{path} does not exist on "{rev}"', {"X-Repo-Commit": oid})
    out, dirs, rec = [], set(), h.q.get("recursive", ["0"])[0] in ("1", "True", "true")
    for p in names:
        parts = p[len(pre) :].split("/")
        for i in range(1, len(parts) if rec else min(2, len(parts))):
            d = pre + "/".join(parts[:i])
            if d not in dirs:
                dirs.add(d)
                out.append({"type": "directory", "path": d, "oid": hashlib.sha1(d.encode()).hexdigest(), "size": 0})
        if rec or len(parts) == 1:
            out.append(_entry(p, t[p]))
    h.json(out)


@route("POST", "/api/models/{R}/paths-info/(?P<rev>.+)")
def paths_info(h, body, repo, rev):
    r = h.repo(repo)
    t = r.commits[h.rev(r, rev)]
    want = parse_qs(body.decode()).get("paths", []) if not body.startswith(b"{") else json.loads(body)["paths"]
    out = [_entry(p, t[p]) for p in want if p in t]
    if h.hub.damage_commits:
        for entry in out:
            if "lfs" in entry:
                entry["lfs"]["oid"] = "0" * 64
    out += [
        {"type": "directory", "path": p, "oid": "0" * 40, "size": 0}
        for p in want
        if p not in t and any(q.startswith(p.rstrip("/") + "/") for q in t)
    ]
    h.json(out)


@route("GET", "/api/models/{R}/refs")
def refs(h, body, repo):
    r = h.repo(repo)

    def f(kind, tab):
        return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": c} for n, c in tab.items()]

    h.json({"branches": f("heads", r.refs), "tags": f("tags", r.tags), "converts": []})


@route("GET", "/api/models/{R}/commits/(?P<rev>.+)")
def commits(h, body, repo, rev):
    r = h.repo(repo)
    c = h.rev(r, rev)
    by = {e["id"]: e for e in r.log}
    out = []
    while c:
        out.append(by[c])
        c = by[c]["parent"]
    h.json(out)


@route("POST", "/api/models/{R}/(?P<kind>tag|branch)/(?P<rev>.+)")
def make_ref(h, body, repo, kind, rev):
    r = h.repo(repo, write=True)
    p = json.loads(body or b"{}")
    tab, name, src = (r.tags, p["tag"], rev) if kind == "tag" else (r.refs, rev, p.get("startingPoint") or "main")
    if name in tab:
        raise HTTPError(409, "", f"{kind} {name} already exists")
    tab[name] = h.rev(r, src)
    h.json({})


@route("DELETE", "/api/models/{R}/(?P<kind>tag|branch)/(?P<rev>.+)")
def del_ref(h, body, repo, kind, rev):
    r = h.repo(repo, write=True)
    tab = r.tags if kind == "tag" else r.refs
    if rev not in tab:
        raise HTTPError(404, "RevisionNotFound", f"no {kind} {rev}")
    del tab[rev]
    h.json({})


@route("POST", "/api/models/{R}/preupload/(?P<rev>.+)")
def preupload(h, body, repo, rev):
    r = h.repo(repo, write="create_pr" not in h.q)
    t = r.commits[h.rev(r, rev)]
    h.json(
        {
            "files": [
                {
                    "path": f["path"],
                    "shouldIgnore": False,
                    "uploadMode": "lfs" if f["path"].endswith(LFS_SUFFIXES) or f["size"] > REGULAR_MAX else "regular",
                    **({"oid": (t[f["path"]].sha256 or t[f["path"]].oid)} if f["path"] in t else {}),
                }
                for f in json.loads(body)["files"]
            ]
        }
    )


@route("POST", "/api/models/{R}/commit/(?P<rev>.+)")
def commit(h, body, repo, rev):
    create_pr = "create_pr" in h.q
    user = h.user(required=True)
    r = h.repo(repo, write=not create_pr)
    base = h.rev(r, rev)
    if rev not in r.refs:
        raise HTTPError(404, "RevisionNotFound", f"{rev} is not a branch")
    t = dict(r.commits[base])
    head: dict[str, Any] = {}
    for line in body.splitlines():
        if not line.strip():
            continue
        item = json.loads(line)
        k, v = item["key"], item["value"]
        if k == "header":
            head = v
            if v.get("parentCommit") and not base.startswith(v["parentCommit"]):
                raise HTTPError(412, "", "A commit has happened since. Please refresh and try again.")
        elif k == "file":
            d = base64.b64decode(v["content"])
            t[v["path"]] = Blob(git_blob_oid(d), len(d), data=d)
        elif k == "lfsFile":
            if not h.hub.has_object(v["oid"]):
                raise HTTPError(400, "", f"LFS pointer pointed to a file that does not exist: {v['oid']}")
            size = v.get("size") or len(h.hub.objects[v["oid"]])
            t[v["path"]] = Blob(git_blob_oid(lfs_pointer(v["oid"], size)), size, sha256=v["oid"])
        elif k == "deletedFile":
            if v["path"] not in t:
                raise HTTPError(404, "EntryNotFound", "A file with this name doesn't exist")
            del t[v["path"]]
        elif k == "deletedFolder":
            for p in [p for p in t if p.startswith(v["path"].rstrip("/") + "/")]:
                del t[p]
    number = len(r.pulls) + 1
    oid = r.commit(f"refs/pr/{number}" if create_pr else rev, t, head.get("summary", ""), user, parent=base)
    answer = {"success": True, "commitOid": oid, "commitUrl": f"{h.hub.url}/{repo}/commit/{oid}", "hookOutput": ""}
    h.json(answer | ({"pullRequestUrl": f"{h.hub.url}/{repo}/discussions/{number}"} if create_pr else {}))
