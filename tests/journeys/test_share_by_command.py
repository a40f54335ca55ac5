"""`sae-lens-afa push | pull | list | info`, against the local Hub."""

import json

PREPARE = """
    from safetensors.torch import save_file
    from sae_lens_afa.evals.report import write_report
    from pathlib import Path
    x = torch.randn(3000, 8)
    save_file({"activations": x}, "acts.safetensors")
    results, about = {}, {}
    for name, seed in {"first": 0, "second": 1}.items():
        make(seed).save_inference_model(f"runs/{name}")
        results[name] = afa.evaluate_activations(make(seed), x)
        about[name] = {"hook_name": "blocks.6.hook_resid_pre", "architecture": "top_afa"}
    settings = {"model": "gpt2", "dataset": "owner/held-out", "context_size": 128}
    write_report(Path("evaluation"), results, about, settings, per_token=False)
"""


def test_push_list_info_pull(client, hub):
    client.run(PREPARE)
    pushed = client.command(
        "push", "me/saes", "--sae", "runs/first", "--sae", "layer/6=runs/second", "--metrics", "evaluation",
        "--license", "mit", "--tag", "v1", "--message", "Two SAEs",
    )  # fmt: skip
    assert pushed.last_line == f"{hub.url}/me/saes/commit/{hub.repos['me/saes'].refs['main']}"
    assert hub.repos["me/saes"].log[-1]["title"] == "Two SAEs"
    assert client.command("list", "me/saes").output.split() == ["first", "layer/6"]
    about = client.command("info", "me/saes", "--sae-id", "layer/6", "--revision", "v1").output
    for said in ("me/saes at commit", ": 1 SAE", "layer/6", "top_afa", "blocks.6.hook_resid_pre", "over-activated"):
        assert said in about
    assert client.command("pull", "me/saes", "--output", "here", "--sae-id", "first").last_line == "here/first"
    assert client.command("info", "here").output.startswith("here: 1 SAE\n")
    metrics = json.loads(hub.file("me/saes", "layer/6/afa_metrics.json"))
    assert metrics["dataset"] == "owner/held-out"
    assert metrics["l0_mean"] > 0
    assert hub.file("me/saes", "layer/6/zf_plot.png").startswith(b"\x89PNG")
    card = hub.file("me/saes", "README.md").decode()
    assert "type: owner/held-out" in card
    assert "![ZF plot of layer/6](layer/6/zf_plot.png)" in card


def test_push_with_jumprelu(client, hub):
    client.run(PREPARE)
    client.command(
        "push", "me/saes", "--sae", "runs/first", "--with-jumprelu", "--activations", "acts.safetensors", "--private"
    )
    assert client.command("list", "me/saes").output.split() == ["first", "first-jumprelu"]
    assert hub.repos["me/saes"].private
    card = hub.file("me/saes", "README.md").decode()
    assert "An approximation: its own fixed threshold for each feature" in card
    loaded = client.run("""
        from sae_lens import SAE
        sae, original = (SAE.from_pretrained("me/saes", name) for name in ("first-jumprelu", "first"))
        x = torch.randn(100, 8)
        agree = (sae.encode(x) > 0) == (original.encode(x) > 0)
        print(type(sae).__name__, agree.float().mean().item() > 0.8)
    """)
    assert loaded.last_line == "JumpReLUSAE True"


def test_errors_are_one_line(client):
    client.run(PREPARE)
    for args, says in {
        ("list", "me/none"): "error: cannot read me/none: there is no such repository",
        ("push", "me/saes", "--sae", "runs"): "error: runs (runs) has no cfg.json",
        ("push", "me/saes", "--sae", "a=runs/first", "--sae", "a=runs/second"): "error: 'a=runs/second' needs an id",
        ("push", "me/saes", "--sae", "runs/first", "--metrics", "runs"): "error: runs has no metrics.json",
        ("push", "me/saes", "--sae", "runs/first", "--demo"): "error: a calibration is for --with-jumprelu",
    }.items():
        output = client.command(*args, status=1).output
        assert output.startswith(says), output
        assert output.count("\n") == 1


def test_figures_of_other_saes_are_refused(client):
    client.run(PREPARE)
    client.run('make(5).save_inference_model("runs/third")')
    output = client.command("push", "me/saes", "--sae", "runs/third", "--metrics", "evaluation", status=1).output
    assert output.startswith(
        "error: --metrics evaluation has figures of first, second, none of which is pushed (third)"
    )


def test_a_token_is_not_a_flag(client):
    assert "No such option" in client.command("push", "me/saes", "--sae", "a", "--token", "x", status=2).output
