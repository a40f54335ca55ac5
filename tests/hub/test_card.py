"""The model card by itself."""

import pytest
import yaml

from sae_lens_afa.hub._card import BEGIN, END, CardOptions, base_model_id, dataset_id, write_card
from sae_lens_afa.hub._contents import SAEFacts, short_name

FACTS = SAEFacts(
    {
        "architecture": "top_afa", "d_in": 768, "d_sae": 12288, "dtype": "float32",
        "metadata": {
            "model_name": "gpt2-small", "hook_name": "blocks.6.hook_resid_pre", "dataset_path": "owner/text",
            "training_architecture": "top_afa", "training_architecture_details": {"afa_coefficient": 1 / 32},
            "package_versions": {"sae-lens-afa": "0.2.0", "torch": "2.13.0"},
        },
    },
    {"training_tokens": 81_924_096, "lr": 3e-4, "train_batch_size_tokens": 4096},
    {
        "l0_mean": 2037.04, "explained_variance": 0.9987, "ce_loss_score": 0.99, "epsilon_lbo_median": 1.5e-6,
        "frac_over_activated": 0.25, "norm_ratio_median": None, "dataset": "owner/held-out",
    },
)  # fmt: skip


def metadata(card: str) -> dict:
    _, front, _ = card.split("---\n", 2)
    return yaml.safe_load(front)


def write(existing: str | None = None, saes: dict | None = None, **options) -> str:
    return write_card(existing, "me/saes", saes or {"layer/6": FACTS}, CardOptions(**options))


def test_metadata():
    data = metadata(write(license="mit"))
    assert data["library_name"] == "saelens"
    assert data["pipeline_tag"] == "feature-extraction"
    assert data["base_model"] == "openai-community/gpt2"
    assert data["datasets"] == ["owner/text"]
    assert data["license"] == "mit"
    assert data["language"] == "en"
    assert {"sparse-autoencoder", "top_afa"} <= set(data["tags"])
    (model,) = data["model-index"]
    (result,) = model["results"]
    assert result["dataset"] == {"name": "owner/held-out", "type": "owner/held-out"}
    values = {metric["name"]: metric["value"] for metric in result["metrics"]}
    assert values == {
        "L0 (layer/6)": 2037.04, "explained variance (layer/6)": 0.9987, "CE score (layer/6)": 0.99,
        "eps-LBO (median) (layer/6)": 1.5e-6, "over-activated (layer/6)": 0.25,
    }  # fmt: skip


def test_tokens_that_were_left_out_are_counted_where_there_were_any():
    for left_out, shown in ((0, False), (3, True)):
        card = write(saes={"a": SAEFacts(FACTS.cfg, {}, {**FACTS.metrics, "n_nonfinite": left_out})})
        assert ("| tokens left out (NaN, infinity) |" in card) == shown
        (model,) = metadata(card)["model-index"]
        names = {metric["name"] for result in model["results"] for metric in result["metrics"]}
        assert ("tokens left out (NaN, infinity) (a)" in names) == shown


def test_metrics_of_two_saes_do_not_merge():
    other = SAEFacts(FACTS.cfg, {}, {**FACTS.metrics, "l0_mean": 7.0})
    (model,) = metadata(write(saes={"a": FACTS, "b": other}))["model-index"]
    values = {metric["name"]: metric["value"] for result in model["results"] for metric in result["metrics"]}
    assert (values["L0 (a)"], values["L0 (b)"]) == (2037.04, 7.0)


def test_tables():
    card = write()
    row = (
        "| `layer/6` | top_afa | gpt2-small | blocks.6.hook_resid_pre | 768 | 12288 | 2037 | 0.9987 | 0.99 | 1.5e-06 |"
    )
    assert row in card
    for setting in (
        "| tokens | 81,924,096 |",
        "| learning rate | 0.0003 |",
        "| afa_coefficient | 0.03125 |",
        "| versions | sae-lens-afa 0.2.0, torch 2.13.0 |",
    ):
        assert setting in card


def test_saes_with_the_same_settings_share_a_column():
    assert "|  | `a`, `b` |" in write(saes={"a": FACTS, "b": FACTS})


def test_the_section_is_replaced_where_it_stands():
    first = write()
    around = first.replace(BEGIN, "before\n\n" + BEGIN).replace(END, END + "\n\nafter")
    again = write(around, {"other": FACTS})
    assert again.index("before") < again.index("`other`") < again.index("after")
    assert "`layer/6`" not in again
    assert write(again, {"other": FACTS}) == again


@pytest.mark.parametrize("text", ["# Mine\n\nText.\n", "Text without a title", "---\nlicense: mit\n---\n", ""])
def test_text_of_others_stays(text):
    card = write(text)
    assert text.split("---\n")[-1].strip() in card
    assert card.count(BEGIN) == card.count(END) == 1
    assert write(card) == card


def test_metrics_of_others_stay():
    others = (
        "---\nmodel-index:\n- name: mine\n  results:\n  - task:\n      type: feature-extraction\n    dataset:\n"
        "      name: d\n      type: d\n    metrics:\n    - type: mcc\n      value: 0.5\n      name: MCC\n---\n# Mine\n"
    )
    (model,) = metadata(write(others))["model-index"]
    assert model["name"] == "mine"
    names = [metric["name"] for result in model["results"] for metric in result["metrics"]]
    assert "MCC" in names
    assert "L0 (layer/6)" in names


def test_options_win_over_what_the_saes_say():
    data = metadata(write("---\nlicense: mit\n---\n", base_model=["a/b", "c/d"], datasets=["e/f"]))
    assert data["base_model"] == ["a/b", "c/d"]
    assert data["datasets"] == ["e/f"]
    assert data["license"] == "mit"


def test_a_computers_paths_do_not_show():
    cfg = {**FACTS.cfg, "metadata": {"model_name": "/home/alice/gpt2", "dataset_path": "C:\\Users\\alice\\text"}}
    card = write(saes={"a": SAEFacts(cfg, {}, {})})
    assert "alice" not in card
    assert "base_model: openai-community/gpt2" in card


def test_cells_cannot_break_the_table():
    cfg = {**FACTS.cfg, "metadata": {"hook_name": "a|b\n| c"}}
    assert r"a\|b \| c" in write(saes={"a": SAEFacts(cfg, {}, {})})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt2", "openai-community/gpt2"),
        ("gpt2-small", "openai-community/gpt2"),
        ("gpt2-xl", "openai-community/gpt2-xl"),
        ("distilgpt2", "distilbert/distilgpt2"),
        ("pythia-70m", "EleutherAI/pythia-70m"),
        ("google/gemma-3-270m", "google/gemma-3-270m"),
        ("kjv_gpt2", None),
        (None, None),
    ],
)
def test_base_model_is_a_real_id(name, expected):
    assert base_model_id(name) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [("Skylion007/openwebtext", "Skylion007/openwebtext"), ("data/local/text", None), ("./a/b", None), (None, None)],
)
def test_dataset_ids(path, expected):
    assert dataset_id(path) == expected


def test_short_names():
    assert [short_name(name) for name in ("owner/name", "/a/b/c", "~/x", "", 3)] == ["owner/name", "c", "x", None, None]


def test_metadata_that_cannot_be_read():
    with pytest.raises(ValueError, match=r"the metadata of me/saes's README.md cannot be read .*: mend it"):
        write("---\ntags: [a\n---\n# Mine\n")
