"""Folders of SAEs, pushed with what is known of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sae_lens_afa.hub.push_folders import push_folders

PREPARE = """
    from pathlib import Path
    from safetensors.torch import save_file
    from sae_lens_afa.hub.push_folders import push_folders
    from sae_lens_afa.reports.folder import write_report
    x = torch.randn(3000, 8)
    save_file({"activations": x}, "acts.safetensors")
    make(0).save_inference_model("runs/first")
    make(1).save_inference_model("runs/second")
    Path("runs/first/runner_cfg.json").write_text('{"training_tokens": 4096}')
    results = {"first": afa.evaluate_activations(make(0), x), "runs/second": afa.evaluate_activations(make(1), x)}
    about = {"hook_name": "blocks.6.hook_resid_pre", "architecture": "top_afa"}
    settings = {"model": "gpt2", "dataset": "owner/held-out", "context_size": 128}
    write_report(Path("evaluation"), results, dict.fromkeys(results, about), settings, per_token=False)
"""


@pytest.mark.slow
def test_metrics_plots_and_stand_ins_go_with_the_saes(client, hub):
    url = client.run(
        PREPARE
        + """
    print(push_folders(
        "me/saes", ["runs/first", "layer/6=runs/second"], metrics=["evaluation"], with_jumprelu=True,
        activations="acts.safetensors", license="mit", private=True, commit_message="All of them",
    ))
    """
    ).last_line
    repo = hub.repos["me/saes"]
    assert url == f"{hub.url}/me/saes/commit/{repo.refs['main']}"
    assert repo.private
    assert repo.log[-1]["title"] == "All of them"
    files = set(repo.commits[repo.refs["main"]])
    assert {"first/runner_cfg.json", "first-jumprelu/runner_cfg.json", "layer/6-jumprelu/cfg.json"} <= files
    for folder in ("first", "layer/6"):
        metrics = json.loads(hub.file("me/saes", f"{folder}/afa_metrics.json"))
        assert metrics["dataset"] == "owner/held-out"
        assert metrics["l0_mean"] > 0
        assert hub.file("me/saes", f"{folder}/zf_plot.png").startswith(b"\x89PNG")
    card = hub.file("me/saes", "README.md").decode()
    assert card.count("An approximation: its own fixed threshold for each feature") == 2
    assert "type: owner/held-out" in card
    assert "license: mit" in card


def evaluation(folder: Path, *names: str) -> Path:
    folder.mkdir()
    saes = {name: {"architecture": "top_afa", "metrics": {"n_tokens": 1, "d_sae": 2}} for name in names}
    (folder / "metrics.json").write_text(json.dumps({"version": 2, "settings": {}, "saes": saes}))
    return folder


def test_the_page_of_features_goes_with_its_sae(client, hub):
    client.run(
        PREPARE
        + """
    for folder in ("seen", "other"):
        Path(folder).mkdir()
        Path(folder, "features.html").write_text(folder)
    push_folders("me/saes", ["runs/first", "runs/second"], features=["first=seen"])
    push_folders("me/saes", ["b c=runs/second"], features=["other"])
    """
    )
    assert hub.file("me/saes", "first/features.html") == b"seen"
    assert hub.file("me/saes", "b c/features.html") == b"other"
    files = set(hub.repos["me/saes"].commits[hub.repos["me/saes"].refs["main"]])
    assert "second/features.html" not in files
    card = hub.file("me/saes", "README.md").decode()
    assert "- `first`: [features.html](first/features.html)" in card
    assert "- `b c`: [features.html](b%20c/features.html)" in card
    # Another SAE in its place is not shown with the old one's features.
    client.run(PREPARE + '    afa.push_to_hub({"first": "runs/second"}, "me/saes")\n    ')
    assert "first/features.html" not in set(hub.repos["me/saes"].commits[hub.repos["me/saes"].refs["main"]])
    assert "](first/features.html)" not in hub.file("me/saes", "README.md").decode()


@pytest.mark.parametrize(
    ("saes", "options", "message"),
    [
        (["x/first"], {"features": ["second=seen"]}, r"features 'second=seen' are of none of the SAEs \(first\)"),
        (["x/first", "x/second"], {"features": ["seen"]}, "features 'seen' are of none of the SAEs"),
        (["a=x/first", "a=y/second"], {}, r"'a=y/second' needs an id of its own: give ID=FOLDER \('a' is taken"),
        (["x/first", "y/first"], {}, r"'y/first' needs an id of its own"),
        (["x/first"], {"activations": "acts"}, "a calibration is for with_jumprelu: give that too"),
        (["x/first"], {"dataset": "text"}, "a calibration is for with_jumprelu: give that too"),
        (["x/other"], {"metrics": True}, r"of first, second, none of which is pushed \(other\): give ID=FOLDER"),
        (["x/first"], {"metrics": ["nowhere"]}, "nowhere has no metrics.json"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_hub_is_asked(tmp_path, saes, options, message):
    if options.get("metrics") is True:
        options = {"metrics": [evaluation(tmp_path / "evaluation", "first", "second")]}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        push_folders("me/saes", saes, **options)
