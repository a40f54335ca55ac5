"""What a user meets when it goes wrong: one line that says what, where, and what to do; wrong input before any work."""

import pytest

PUSH = 'afa.push_to_hub({"a": make()}, "me/saes")'


@pytest.mark.parametrize(
    ("repo_id", "token", "says"),
    [
        ("me/missing", "hf_other", "cannot read me/missing: there is no such repository, or the token's user may not"),
        ("me/missing", None, "cannot read me/missing: there is no such repository, or it is private and no token was"),
        ("me/saes", "hf_wrong", "cannot read me/saes: the Hub does not accept the token (401)"),
        ("me/sa es", None, "repo_id 'me/sa es' is not a repository's name"),
    ],
)
def test_reading(client, repo_id, token, says):
    client.run(PUSH)
    # One token is enough to see that all three read in the same way.
    for call in ("load", "list_saes", "hub.info") if token == "hf_other" else ("load",):
        error = client.error(f"afa.{call}({repo_id!r})", token=token)
        assert error.startswith(says), error


def test_a_wrong_id_lists_those_that_exist(client):
    client.run('afa.push_to_hub({"a": make(), "b/c": make()}, "me/saes")')
    assert client.error('afa.load("me/saes", "d")') == "me/saes has no SAE 'd'; it has: a, b/c"
    assert client.error('afa.load("me/saes")') == "me/saes holds 2 SAEs, say which by sae_id: a, b/c"
    assert client.error('afa.hub.info("me/saes", "../a")') == "me/saes has no SAE '../a'; it has: a, b/c"


def test_a_repository_without_saes(client):
    client.run('from huggingface_hub import HfApi; HfApi().create_repo("me/empty")')
    assert client.run('print(afa.list_saes("me/empty"))').last_line == "[]"
    assert client.error('afa.load("me/empty")').startswith("me/empty holds no SAE (a folder with cfg.json and")


@pytest.mark.parametrize(
    ("token", "repo_id", "says"),
    [
        (None, "me/saes", "cannot push to me/saes: there is no Hugging Face token: log in with `hf auth login`"),
        ("hf_wrong", "me/saes", "cannot push to me/saes: the Hub does not accept the token (401)"),
        (
            "hf_other",
            "me/new",
            "cannot push to me/new: there is no such repository, and you cannot create it",
        ),
        ("hf_other", "me/saes", "the token's user may not do that (403)"),
    ],
)
@pytest.mark.slow
def test_pushing_without_the_right(client, hub, token, repo_id, says):
    client.run(PUSH)
    before = dict(hub.repos["me/saes"].refs)
    hub.requests.clear()
    error = client.error(f'afa.push_to_hub({{"b": make(1)}}, {repo_id!r})', token=token)
    assert says in error
    assert hub.repos["me/saes"].refs == before
    assert set(hub.repos) == {"me/saes"}
    assert not any(request.method == "PUT" for request in hub.requests), "credentials come before uploads"


def test_the_server_is_away(client, hub):
    hub.fault(r".", drop_after=0, times=-1)
    assert "the connection failed" in client.error('afa.load("me/saes")')
    assert "the connection failed" in client.error(PUSH)
    asked = len(hub.requests)
    offline = "import huggingface_hub; huggingface_hub.constants.HF_HUB_OFFLINE = True\n"
    assert "HF_HUB_OFFLINE is set and it is not in the cache" in client.error(offline + 'afa.load("me/saes")')
    assert len(hub.requests) == asked


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (403, "GatedRepo", "the repository is gated: ask for access on its page"),
        (403, "", "the token's user may not do that (403)"),
        (409, "", "it conflicts with what is there (409)"),
        (418, "", "the Hub answers 418"),
    ],
)
@pytest.mark.slow
def test_refusals(client, hub, status, code, says):
    hub.fault(r"GET /api/models", status=status, headers={"X-Error-Code": code} if code else {}, times=-1)
    assert says in client.error('afa.load("me/saes")')


def test_offline_with_a_part_of_it(client, hub):
    client.run(PUSH)
    client.run('afa.hub.info("me/saes")')
    offline = "import huggingface_hub; huggingface_hub.constants.HF_HUB_OFFLINE = True\n"
    assert client.error(offline + 'afa.load("me/saes")').startswith("the cached part of me/saes holds no SAE")
    assert client.error(offline + 'afa.hub.pull("me/saes", "x")').startswith("the cached part of me/saes holds no SAE")


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.slow
def test_a_failure_of_the_hub_that_lasts(client, hub, status):
    client.run(PUSH)
    hub.fault(r"GET /api/models", status=status, times=-1)
    error = client.error('afa.load("me/saes")')
    assert f"({status})" in error


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ('afa.push_to_hub({}, "me/saes")', "no SAEs to push"),
        ('afa.push_to_hub([make()], "me/saes")', "saes must map ids to SAEs or folders, got a list"),
        ('afa.push_to_hub({"a": 3}, "me/saes")', "a must be an SAE or the folder of one, got a int"),
        ('afa.push_to_hub({"a": "nowhere"}, "me/saes")', "a (nowhere) has no cfg.json"),
        ('afa.push_to_hub({"a": make()}, "saes")', "repo_id must be owner/name, got 'saes'"),
        ('afa.push_to_hub({"../a": make()}, "me/saes")', "sae_id '../a' cannot be a folder"),
        ('afa.push_to_hub({"/a": make()}, "me/saes")', "sae_id '/a' cannot be a folder"),
        ('afa.push_to_hub({"a/README.md": make()}, "me/saes")', "sae_id 'a/README.md' cannot be a folder"),
        ('afa.push_to_hub({"a": make()}, "me/saes", metrics={"b": {}})', "metrics are given for ['b']"),
        (
            'afa.push_to_hub({"a": make()}, "me/saes", metrics={"a": {"l0": float("nan")}})',
            "metrics of a: 'l0' must be a finite",
        ),
        ('afa.push_to_hub({"a": make()}, "me/saes", plots={"a": "no.png"})', "the plot of a must be a .png file"),
        (
            'afa.push_to_hub({"a": make()}, "me/saes", features={"a": "no"})',
            "the features of a must be a page",
        ),
        ('afa.push_to_hub({"a": make()}, "me/saes", features={"b": "."})', "features are given for ['b']"),
        ('afa.push_to_hub({"a": make()}, "me/saes", tag="v1", create_pr=True)', "tag and create_pr exclude each other"),
        (
            'afa.push_to_hub({"a": make(normalize_activations="expected_average_only_in")}, "me/saes")',
            "a scales its input by a factor that is not in its weights",
        ),
        (
            'sae = make(); sae.W_dec.data[3, 4] = float("nan"); afa.push_to_hub({"a": sae}, "me/saes")',
            "a: W_dec has values that are not finite",
        ),
        ('afa.load("./nowhere")', "'./nowhere' is neither a folder here nor a repository"),
        ('afa.load("nowhere")', "'nowhere' is neither a folder here nor a repository"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_created(client, hub, call, says):
    error = client.error(call)
    assert error.startswith(says), error
    assert not hub.repos


def test_a_folder_whose_weights_disagree_with_its_config(client, hub):
    error = client.error("""
        import json, pathlib
        make().save_inference_model("saved")
        cfg = pathlib.Path("saved/cfg.json")
        cfg.write_text(json.dumps({**json.loads(cfg.read_text()), "d_sae": 33}))
        afa.push_to_hub({"a": "saved"}, "me/saes")
    """)
    assert error == (
        "a (saved): weights and config disagree: W_enc has shape [8, 32] in sae_weights.safetensors,"
        " cfg.json asks for [8, 33]."
    )


def test_a_readme_that_cannot_be_read_is_not_overwritten(client, hub):
    client.run("""
        from huggingface_hub import HfApi, CommitOperationAdd
        api = HfApi()
        api.create_repo("me/saes")
    """)
    repo = hub.repos["me/saes"]
    hub.add(repo, {"README.md": b"---\ntags: [a\n---\n# Mine\n"})
    head = repo.refs["main"]
    assert "the metadata of me/saes's README.md cannot be read" in client.error(PUSH)
    assert repo.refs["main"] == head


def test_what_there_is_no_place_for(client, hub):
    assert "there is no such repository" in client.error('afa.push_to_hub({"a": make()}, "me/new", create_pr=True)')
    client.run(PUSH)
    error = client.error('afa.push_to_hub({"a": make()}, "me/saes", create_pr=True, revision="trial")')
    assert error == "me/saes has no branch 'trial' to open a pull request for."


def test_a_broken_sae_of_somebody_else_does_not_stop_a_push(client, hub):
    client.run(PUSH)
    hub.add(hub.repos["me/saes"], {"a/cfg.json": b"{"})
    done = client.run('afa.push_to_hub({"b": make(1)}, "me/saes")')
    assert "a of me/saes: cfg.json is not JSON" in done.output
    assert "The card lists it without details." in done.output
    assert "| `a` |" in hub.file("me/saes", "README.md").decode()
