"""Connections, disks and servers that fail: nothing half-done is ever taken for done."""

import re

import pytest

PUSH = 'print(afa.push_to_hub({"a": make(0), "b": make(1)}, "me/saes", tag="v1"))'
LOAD = """
    assert torch.equal(afa.load("me/saes", "b").W_dec, make(1).W_dec)
"""
UPLOAD_STAGES = {
    "who am I": r"GET /api/whoami",
    "is it there": r"GET /api/models/me/saes$",
    "create": r"POST /api/repos/create",
    "its files": r"GET /api/models/me/saes\?blobs",
    "card check": r"POST /api/validate-yaml",
    "preupload": r"POST /api/models/me/saes/preupload",
    "batch": r"POST /me/saes.git/info/lfs",
    "first blob": r"PUT /_lfs",
    "verify": r"POST /_verify",
    "commit": r"POST /api/models/me/saes/commit",
}
AFTER_COMMIT = {"compare": r"POST /api/models/me/saes/paths-info", "tag": r"POST /api/models/me/saes/tag"}


@pytest.mark.slow
@pytest.mark.parametrize("stage", UPLOAD_STAGES)
def test_a_reset_while_pushing_leaves_the_repository_and_a_rerun_completes(client, hub, stage):
    hub.fault(UPLOAD_STAGES[stage], drop_after=0, times=-1)
    error = client.error(PUSH)
    assert error.startswith(("cannot push to me/saes", "cannot create me/saes", "cannot read me/saes")), error
    assert "\n" not in error
    if "me/saes" in hub.repos:
        assert len(hub.repos["me/saes"].log) == 1, "nothing but the repository's first commit"
    hub.faults.clear()
    client.run(PUSH)
    client.run(LOAD)
    assert hub.repos["me/saes"].tags == {"v1": hub.repos["me/saes"].refs["main"]}


@pytest.mark.parametrize("stage", AFTER_COMMIT)
def test_a_reset_after_the_commit_says_that_it_is_there(client, hub, stage):
    hub.fault(AFTER_COMMIT[stage], drop_after=0, times=-1)
    error = client.error(PUSH)
    assert re.match(rf"commit {hub.repos['me/saes'].refs['main'][:8]} is in me/saes, but cannot be ", error), error
    hub.faults.clear()
    client.run(PUSH)
    assert len(hub.repos["me/saes"].log) == 2, "the same commit, now tagged"
    assert hub.repos["me/saes"].tags == {"v1": hub.repos["me/saes"].refs["main"]}


def test_a_push_that_breaks_off_is_completed_by_the_next(client, hub):
    """One stage and one fault; all of them are the slow tests around this one."""
    hub.fault(UPLOAD_STAGES["commit"], drop_after=0, times=-1)
    assert client.error(PUSH).startswith("cannot push to me/saes")
    hub.faults.clear()
    client.run(PUSH)
    hub.fault(DOWNLOADS["weights"], corrupt=True, times=1)
    client.run(LOAD)


@pytest.mark.slow
def test_a_second_blob_that_fails_keeps_the_first(client, hub):
    hub.fault(r"PUT /_lfs", drop_after=100, times=0)
    client.run('afa.push_to_hub({"a": make(0)}, "me/saes")')
    hub.fault(r"PUT /_lfs", drop_after=100, times=-1)
    client.error('afa.push_to_hub({"a": make(0), "b": make(1)}, "me/saes")')
    assert client.run('print(afa.list_saes("me/saes"))').last_line == "['a']"


def test_somebody_commits_meanwhile(client, hub):
    client.run('afa.push_to_hub({"a": make(0)}, "me/saes")')
    repo = hub.repos["me/saes"]
    hub.fault(r"POST .*/preupload", meanwhile=lambda: hub.add(repo, {"other.txt": b"x"}))
    push = 'afa.push_to_hub({"b": make(1)}, "me/saes")'
    assert "somebody else has committed there meanwhile (412)" in client.error(push)
    assert client.run('print(afa.list_saes("me/saes"))').last_line == "['a']"
    client.run('afa.push_to_hub({"b": make(1)}, "me/saes")')
    assert hub.file("me/saes", "other.txt") == b"x"
    assert client.run('print(afa.list_saes("me/saes"))').last_line == "['a', 'b']"


def test_an_upload_that_arrives_damaged(client, hub):
    hub.damage_commits = True
    error = client.error('afa.push_to_hub({"a": make(0)}, "me/saes")')
    assert "does not hold what was pushed: a/sae_weights.safetensors differ" in error
    hub.damage_commits = False
    client.run('afa.push_to_hub({"a": make(0)}, "me/saes"); afa.load("me/saes")')


DOWNLOADS = {
    "listing": r"GET /api/models",
    "config": r"(GET|HEAD) .*cfg.json",
    "weights": r"(GET|HEAD) .*(_cdn|weights)",
}


@pytest.mark.slow
@pytest.mark.parametrize("stage", DOWNLOADS)
@pytest.mark.parametrize("fault", [{"drop_after": 0}, {"drop_after": 40}, {"status": 500}, {"truncate": 10}], ids=str)
def test_a_download_that_fails_is_tried_again(client, hub, stage, fault):
    client.run(PUSH)
    hub.fault(DOWNLOADS[stage], times=2, **fault)
    client.run(LOAD)
    assert all(each.times == 0 for each in hub.faults), "the fault was met"


# huggingface_hub looks for its cache where the link leads: away with what is there.
FRESH = """
    import shutil, pathlib, huggingface_hub
    shutil.rmtree(pathlib.Path(huggingface_hub.constants.HF_HUB_CACHE))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cfg.json", "_cdn"])
def test_a_flipped_byte_is_caught_and_healed(client, hub, name):
    client.run(PUSH)
    hub.fault(rf"GET .*{name}", corrupt=True, times=1)
    client.run(LOAD)
    hub.fault(rf"GET .*{name}", corrupt=True, times=-1)
    error = client.error(FRESH + LOAD)
    assert "what arrives is damaged" in error
    hub.faults.clear()
    client.run(LOAD)


def test_a_damaged_blob_in_the_cache_is_replaced(client, hub):
    client.run(PUSH)
    client.run(LOAD)
    (weights,) = client.home.rglob("b/sae_weights.safetensors")
    blob = weights.resolve()
    content = bytearray(blob.read_bytes())
    content[-3] ^= 0xFF
    blob.write_bytes(content)
    client.run(LOAD)
    assert blob.read_bytes() != content
    assert "cannot be reached" in client.error(DAMAGE + "    hub_away()\n" + LOAD)


DAMAGE = """
    import pathlib, huggingface_hub
    def hub_away():
        huggingface_hub.constants.HF_HUB_OFFLINE = True
    for path in pathlib.Path(huggingface_hub.constants.HF_HUB_CACHE).rglob("b/sae_weights.safetensors"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
"""


@pytest.mark.slow
def test_a_slow_server_is_waited_for(client, hub):
    client.run(PUSH)
    hub.fault(r"GET .*_cdn", delay=3.0, times=1)  # the clients give up after 2
    client.run(LOAD)


@pytest.mark.slow
def test_a_full_disk(client, hub):
    """Writing stops after 4 kB, as `ulimit -f` does it; no file is left that could be taken for whole."""
    client.run('afa.push_to_hub({"a": make(d_sae=4096)}, "me/saes")')
    full = """
        import builtins, errno, pathlib
        opened = pathlib.Path.open
        def open_on_a_full_disk(self, mode="r", *args, **kwargs):
            file = opened(self, mode, *args, **kwargs)
            if self.name.endswith(".incomplete") and "w" in mode:
                def write(data, write=file.write):
                    if file.tell() + len(data) > 4096:
                        raise OSError(errno.ENOSPC, "No space left on device")
                    return write(data)
                return Full(file, write)
            return file
        class Full:
            def __init__(self, file, write): self.file, self.write = file, write
            def __getattr__(self, name): return getattr(self.file, name)
            def __enter__(self): return self
            def __exit__(self, *args): self.file.close()
        pathlib.Path.open = open_on_a_full_disk
        afa.load("me/saes", "a")
    """
    assert "no space left on the disk" in client.error(full)
    assert not list(client.home.rglob("*.incomplete"))
    client.run('assert torch.equal(afa.load("me/saes").W_dec, make(d_sae=4096).W_dec)')
