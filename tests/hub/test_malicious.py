"""A repository that means harm is refused before anything of it is run, allocated or written elsewhere."""

import json
import pickle

import pytest

pytestmark = pytest.mark.slow  # a process for each file

PREPARE = """
    make().save_inference_model("good")
    afa.push_to_hub({"a": "good"}, "me/saes")
"""


class Harm:
    def __reduce__(self):
        return (exec, ("open('harm', 'w').write('done')",))


def add(hub, **files: bytes) -> None:
    hub.add(hub.repos["me/saes"], {name.replace("__", "/"): content for name, content in files.items()})


@pytest.mark.parametrize("path", ["../../evil/cfg.json", "a/../../cfg.json", "/etc/cfg.json", "a\\..\\b.json", "./x"])
def test_a_file_name_that_leaves_the_folder(client, hub, path):
    client.run(PREPARE)
    hub.add(hub.repos["me/saes"], {path: b"{}"})
    for call in ('afa.load("me/saes", "a")', 'afa.list_saes("me/saes")', 'afa.hub.pull("me/saes", "here")'):
        assert "leads out of its folder; it is refused" in client.error(call)
    assert [path.name for path in client.cwd.iterdir()] == ["good"]


@pytest.mark.parametrize("content", [pickle.dumps(Harm()), b"", b"\xff" * 64, b"\x08\0\0\0\0\0\0\0{}      "], ids=len)
def test_a_file_that_is_not_safetensors(client, hub, content):
    client.run(PREPARE)
    hub.add(hub.repos["me/saes"], {"a/sae_weights.safetensors": content}, lfs=True)
    error = client.error('afa.load("me/saes", "a")')
    assert "sae_weights.safetensors is not a whole safetensors file" in error or "does not fit 'top_afa'" in error
    assert not (client.cwd / "harm").exists()


@pytest.mark.parametrize("claim", [{"d_sae": 10**9}, {"d_in": 10**6, "d_sae": 10**6}, {"d_sae": 10**18}], ids=str)
def test_a_config_that_claims_gigabytes(client, hub, claim):
    client.run(PREPARE)
    cfg = json.loads(hub.file("me/saes", "a/cfg.json"))
    hub.add(hub.repos["me/saes"], {"a/cfg.json": json.dumps({**cfg, **claim}).encode()})
    done = client.run(
        """
        import resource
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            afa.load("me/saes", "a")
        except ValueError as error:
            print(error)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
        """
    )
    message, megabytes = done.output.strip().splitlines()[-2:]
    assert "weights and config disagree: W_enc has shape [8, 32]" in message
    assert int(megabytes) < 100


@pytest.mark.parametrize(
    ("cfg", "says"),
    [
        (b"{", "cfg.json is not JSON"),
        (b"[]", "cfg.json must hold an object, it holds a list"),
        (b"\xff\xfe", "cfg.json is not JSON"),
        (b'{"d_in": "8", "d_sae": 32, "architecture": "top_afa"}', "d_in in cfg.json must be an integer >= 1, got '8'"),
        (b'{"d_in": 8, "d_sae": 32, "architecture": "os.system"}', "architecture 'os.system', which is not registered"),
        (b" " * (5 << 20) + b"{}", "a config has a few thousand; it is refused"),
    ],
    ids=["cut", "list", "utf-8", "text", "unknown", "large"],
)
def test_a_config_that_is_none(client, hub, cfg, says):
    client.run(PREPARE)
    hub.add(hub.repos["me/saes"], {"a/cfg.json": cfg})
    hub.requests.clear()
    assert says in client.error('afa.load("me/saes", "a")')
    assert not any("_cdn" in request.path for request in hub.requests), "its weights were not asked for"
