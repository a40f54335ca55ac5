"""What is pushed is what is loaded, over HTTP, each script in its own process."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hub_client import TOKEN, environment
from hub_server import FakeHub

LOAD_AND_COMPARE = """
    for sae_id, seed in {ids}.items():
        before, after = make(seed), afa.load("me/saes", sae_id)
        x = torch.randn(3, 5, 8)
        assert type(after) is afa.TopAFASAE, type(after)
        assert all(torch.equal(tensor, after.state_dict()[name]) for name, tensor in before.state_dict().items())
        assert torch.equal(before.encode(x), after.encode(x)) and torch.equal(before(x), after(x))
"""


def test_several_saes_come_back_equal_in_a_new_process(client, hub):
    pushed = client.run("""
        make(3).save_inference_model("saved")
        make(4).save_model("checkpoint")
        inference = afa.TopAFASAE.load_from_disk("saved")
        saes = {"a": make(0), "deep/er/b": make(1), "c": "saved", "d": "checkpoint", "e": inference}
        print(afa.push_to_hub(saes, "me/saes"))
    """)
    repo = hub.repos["me/saes"]
    assert pushed.last_line == f"{hub.url}/me/saes/commit/{repo.refs['main']}"
    assert len(repo.log) == 2, "the repository's first commit, and ours"
    ids = {"a": 0, "deep/er/b": 1, "c": 3, "d": 4, "e": 3}
    client.run(LOAD_AND_COMPARE.format(ids=ids))
    listed = client.run('print(afa.list_saes("me/saes"))')
    assert listed.last_line == str(sorted(ids))


@pytest.mark.slow
def test_a_process_that_shares_nothing_loads_it(client, hub, tmp_path):
    client.run('afa.push_to_hub({"a": make()}, "me/saes")')
    home = tmp_path / "empty"
    script = """
import sae_lens_afa
from sae_lens import SAE
sae = SAE.from_pretrained("me/saes", "a")
print(type(sae).__name__, sae_lens_afa.load("me/saes").W_dec.equal(sae.W_dec))
"""
    env = environment(hub, home, xet=False)
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "TopAFASAE True\n"


def test_the_cards_snippets_run_as_pasted(client, hub):
    client.run('afa.push_to_hub({"a": make()}, "me/saes")')
    snippets = re.findall(r"^```python\n(.*?)^```", hub.file("me/saes", "README.md").decode(), re.S | re.M)
    assert len(snippets) == 2
    for snippet in snippets:
        assert client.run(snippet + "print(type(sae).__name__)").last_line == "TopAFASAE"


def test_an_sae_of_any_architecture(client):
    done = client.run("""
        from sae_lens import StandardSAE, StandardSAEConfig
        sae = StandardSAE(StandardSAEConfig(d_in=8, d_sae=16))
        afa.push_to_hub({".": sae}, "me/standard")
        loaded = afa.load("me/standard")
        print(type(loaded).__name__, torch.equal(loaded.W_enc, sae.W_enc), afa.list_saes("me/standard"))
    """)
    assert done.last_line == "StandardSAE True ['.']"


@pytest.mark.slow
def test_the_choice_saes_are_pushed_as_jumprelu(client):
    done = client.run("""
        from sae_lens import SAE
        x = torch.randn(64, 8)
        size = {"d_in": 8, "d_sae": 32, "k": 3}
        for sae in (
            afa.MutualChoiceTrainingSAE(afa.MutualChoiceTrainingSAEConfig(**size)),
            afa.FeatureChoiceTrainingSAE(afa.FeatureChoiceTrainingSAEConfig(**size)),
        ):
            name = sae.cfg.architecture()
            afa.push_to_hub({name: sae}, "me/choices")
            loaded = SAE.from_pretrained("me/choices", name)
            print(type(loaded).__name__, torch.allclose(loaded(x), sae.eval()(x), atol=1e-5))
        print(afa.list_saes("me/choices"))
    """)
    assert done.output.strip().splitlines()[-3:] == [
        "JumpReLUSAE True", "JumpReLUSAE True", "['feature_choice', 'mutual_choice']",
    ]  # fmt: skip


@pytest.mark.slow
def test_an_afa_threshold_sae_is_pushed_and_loaded(client):
    done = client.run("""
        from sae_lens import SAE
        cfg = afa.AFAThresholdTrainingSAEConfig(d_in=8, d_sae=32, threshold_scale=0.7)
        sae = afa.AFAThresholdTrainingSAE(cfg).eval()
        afa.push_to_hub({"a": sae}, "me/threshold")
        x = torch.randn(64, 8)
        for loaded in (afa.load("me/threshold", "a"), SAE.from_pretrained("me/threshold", "a")):
            print(type(loaded).__name__, torch.equal(loaded(x), sae(x)), round(loaded.cfg.threshold_scale, 4))
    """)
    assert done.output.strip().splitlines()[-2:] == ["AFAThresholdSAE True 0.7"] * 2


def test_dtype_and_device(client):
    done = client.run("""
        afa.push_to_hub({"half": make(dtype="bfloat16")}, "me/saes")
        print(*(afa.load("me/saes", dtype=dtype).W_dec.dtype for dtype in (None, "float32", torch.float64)))
    """)
    assert done.last_line == "torch.bfloat16 torch.float32 torch.float64"
    assert "dtype must be one of float32" in client.error('afa.load("me/saes", dtype="int8")')
    assert "device='cpu'" in client.error('afa.load("me/saes", device="nowhere")')


@pytest.mark.slow
def test_revision_and_tag(client, hub):
    client.run("""
        afa.push_to_hub({"a": make(0)}, "me/saes", tag="v1")
        afa.push_to_hub({"a": make(1)}, "me/saes")
        afa.push_to_hub({"a": make(2)}, "me/saes", revision="trial")
        for revision, seed in {"v1": 0, "main": 1, None: 1, "trial": 2}.items():
            assert torch.equal(afa.load("me/saes", "a", revision=revision).W_dec, make(seed).W_dec), revision
    """)
    assert set(hub.repos["me/saes"].refs) == {"main", "trial"}
    assert "has a tag 'v1' already" in client.error('afa.push_to_hub({"a": make(3)}, "me/saes", tag="v1")')
    assert "at revision 'v9': there is no such revision" in client.error('afa.load("me/saes", "a", revision="v9")')


def test_pull_request_to_somebody_elses_repository(client, hub):
    client.run('afa.push_to_hub({"a": make(0)}, "other/saes")', token="hf_other")
    before = hub.repos["other/saes"].refs.copy()
    url = client.run('print(afa.push_to_hub({"b": make(1)}, "other/saes", create_pr=True))').last_line
    assert url == f"{hub.url}/other/saes/discussions/1"
    assert hub.repos["other/saes"].refs == before
    client.run("""
        assert afa.list_saes("other/saes") == ["a"]
        assert torch.equal(afa.load("other/saes", "b", revision="refs/pr/1").W_dec, make(1).W_dec)
    """)


def test_private_repository(client, hub):
    client.run('afa.push_to_hub({"a": make()}, "me/secret", private=True)')
    assert hub.repos["me/secret"].private
    client.run('afa.load("me/secret")')
    assert "private and no token was sent" in client.error('afa.load("me/secret", revision="main")', token=None)
    assert "may not see it" in client.error('afa.load("me/secret")', token="hf_other")
    error = client.error('afa.push_to_hub({"a": make()}, "me/secret", private=False)')
    assert error.startswith("me/secret exists and is private, private=False was asked for")


def test_a_second_push_extends(client, hub):
    client.run("""
        x = torch.randn(50, 8)
        afa.push_to_hub({"a": make(0)}, "me/saes", metrics={"a": afa.evaluate_activations(make(0), x)}, license="mit")
        afa.push_to_hub({"b": make(1)}, "me/saes", metrics={"b": {"l0_mean": 3.0, "ce_loss_score": 0.875}})
    """)
    files = set(hub.repos["me/saes"].commits[hub.repos["me/saes"].refs["main"]])
    own = {"cfg.json", "sae_weights.safetensors", "afa_metrics.json"}
    expected = {f"{sae_id}/{name}" for sae_id in "ab" for name in own}
    assert files == expected | {".gitattributes", "README.md", "a/zf_plot.png"}
    card = hub.file("me/saes", "README.md").decode()
    assert card.count("sae-lens-afa: begin") == card.count("sae-lens-afa: end") == 1
    for expected in ("| `a` |", "| `b` |", "0.875", "license: mit", "L0 (a)", "L0 (b)", "a/zf_plot.png"):
        assert expected in card, expected
    client.run(LOAD_AND_COMPARE.format(ids={"a": 0, "b": 1}))


def test_the_same_push_again_changes_nothing(client, hub):
    first, second = (client.run('print(afa.push_to_hub({"a": make()}, "me/saes"))').last_line for _ in range(2))
    assert first == second
    assert len(hub.repos["me/saes"].log) == 2


def test_metrics_of_replaced_weights_go_with_them(client, hub):
    push = 'afa.push_to_hub({{"a": make({})}}, "me/saes"{})'
    client.run(push.format(0, ', metrics={"a": {"l0_mean": 3.25}}'))
    client.run(push.format(0, ', license="mit"'))
    assert "3.25" in hub.file("me/saes", "README.md").decode(), "the same weights: what was known of them stays"
    client.run(push.format(1, ""))
    assert "3.25" not in hub.file("me/saes", "README.md").decode()
    assert "a/afa_metrics.json" not in hub.repos["me/saes"].commits[hub.repos["me/saes"].refs["main"]]


def test_a_hand_written_card_keeps_its_text(client, hub):
    client.run("""
        from huggingface_hub import HfApi
        api = HfApi()
        api.create_repo("me/saes")
        card = "---\\nlicense: apache-2.0\\nfunding: ours\\ntags: [mine]\\n---\\n# Our SAEs\\n\\nTrained with care.\\n"
        api.upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id="me/saes")
        api.upload_file(path_or_fileobj=b"1", path_in_repo="data.txt", repo_id="me/saes")
        afa.push_to_hub({"a": make()}, "me/saes")
    """)
    card = hub.file("me/saes", "README.md").decode()
    for kept in ("license: apache-2.0", "funding: ours", "- mine", "# Our SAEs\n\nTrained with care.\n"):
        assert kept in card
    assert hub.file("me/saes", "data.txt") == b"1"


def test_a_training_run_is_pushed_with_its_settings_and_without_its_paths(client, hub):
    client.run("""
        import json, pathlib
        make().save_inference_model("run")
        pathlib.Path("run/runner_cfg.json").write_text(json.dumps({
            "training_tokens": 4096, "lr": 3e-4, "output_path": "/home/alice/run", "logger": {"wandb_entity": "alice"},
        }))
        afa.push_to_hub({"a": "run"}, "me/saes")
    """)
    settings = json.loads(hub.file("me/saes", "a/runner_cfg.json"))
    assert settings == {"training_tokens": 4096, "lr": 3e-4}
    card = hub.file("me/saes", "README.md").decode()
    assert "| tokens | 4,096 |" in card
    assert "| learning rate | 0.0003 |" in card
    assert "base_model: openai-community/gpt2" in card
    assert "- Skylion007/openwebtext" in card


def test_a_checkpoint_is_pushed_with_its_scaling_folded(client):
    client.run("""
        import json, pathlib
        sae = make(normalize_activations="expected_average_only_in")
        sae.save_model("checkpoint")
        pathlib.Path("checkpoint/activation_scaler.json").write_text(json.dumps({"scaling_factor": 2.5}))
        afa.push_to_hub({"a": "checkpoint"}, "me/saes")
        loaded, x = afa.load("me/saes"), torch.randn(10, 8)
        assert loaded.cfg.normalize_activations == "none"
        torch.testing.assert_close(loaded.encode(x), sae.encode(2.5 * x))
        torch.testing.assert_close(loaded(x), sae(2.5 * x) / 2.5)
    """)


def test_pull_and_load_from_the_folder(client):
    client.run("""
        afa.push_to_hub({"a": make(0), "b/c": make(1)}, "me/saes")
        print(afa.hub.pull("me/saes", "here"))
        assert afa.list_saes("here") == ["a", "b/c"]
        assert torch.equal(afa.load("here", "b/c").W_dec, make(1).W_dec)
        assert torch.equal(afa.load("here/a").W_dec, make(0).W_dec)
    """)
    weights = client.cwd / "here/a/sae_weights.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert weights.with_name("sae_weights.safetensors.sha256").read_text() == f"{digest}  sae_weights.safetensors\n"
    assert "here/a exists" in client.error('afa.hub.pull("me/saes", "here")')
    client.run('afa.hub.pull("me/saes", "here", ["a"], overwrite=True)')
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "is not what sae_weights.safetensors.sha256 says" in client.error('afa.load("here", "a")')


@pytest.mark.slow
def test_without_a_network_the_cache_will_do(client, hub):
    client.run('afa.push_to_hub({"a": make(), "b": make()}, "me/saes"); afa.load("me/saes", "a")')
    asked = len(hub.requests)
    hub.fault(r".", drop_after=0, times=-1)
    done = client.run('print(afa.list_saes("me/saes"), type(afa.load("me/saes")).__name__)')
    assert done.last_line == "['a'] TopAFASAE"
    assert "Using the copy in the cache" in done.output
    assert len(hub.requests) > asked, "it was asked first"
    assert "the connection failed" in client.error('afa.load("me/never-seen")')


@pytest.mark.slow
def test_large_file_storage_in_parts(client, hub):
    hub.multipart_chunk = 5 * 1024 * 1024
    client.run("""
        afa.push_to_hub({"large": make(d_in=64, d_sae=16384)}, "me/saes")
        assert torch.equal(afa.load("me/saes").W_enc, make(d_in=64, d_sae=16384).W_enc)
    """)
    assert sum(request.method == "PUT" for request in hub.requests) == 2


@pytest.mark.slow
def test_xet_storage(tmp_path):
    """The same through hf_xet, against its local store."""
    pytest.importorskip("hf_xet")
    script = """
import sys; sys.path.insert(0, {here!r})
import io
sys.stdin = io.StringIO("")
from fork_server import afa, make, torch
afa.push_to_hub({{"a": make()}}, "me/saes")
assert torch.equal(afa.load("me/saes").W_dec, make().W_dec)
print("equal")
"""
    with FakeHub(users={TOKEN: "me"}, xet_dir=str(tmp_path / "cas")) as hub:
        env = {**environment(hub, tmp_path / "home", xet=True), "HF_TOKEN": TOKEN}
        code = script.format(here=str(Path(__file__).parent))
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert done.stdout.endswith("equal\n"), done.stdout + done.stderr
        assert any("xet-write-token" in request.path for request in hub.requests)
        assert any("xet-read-token" in request.path for request in hub.requests)
        assert not any(request.method == "PUT" for request in hub.requests), "nothing went through LFS"
