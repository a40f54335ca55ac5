"""Plots: what they draw and what they save."""

from __future__ import annotations

import html
import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

from sae_lens_afa import AFAMetrics, TopAFASAE, TopAFASAEConfig, evaluate_activations, plots
from sae_lens_afa.functional import epsilon_lbo
from sae_lens_afa.plots.data import TokenGroup, bands, log_density, point_density, zf_panel
from sae_lens_afa.plots.styles import styles_of
from sae_lens_afa.reports.folder import read_tokens, write_report

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def tokens() -> pd.DataFrame:
    """The published tokens, layer by layer."""
    table = pd.read_csv(DATA / "zf_gpt2_small_norms.csv").rename(
        columns={"norm_z": "dense_norm", "norm_f": "feature_norm"}
    )
    norms = (torch.tensor(table[name]) for name in ("dense_norm", "feature_norm"))
    table["nmse"], table["epsilon_lbo"] = table.l_recon / table.dense_norm**2, epsilon_lbo(*norms, d_sae=24576).numpy()
    return table


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    """The paper's training runs."""
    layers = json.loads((files("sae_lens_afa.experiments") / "paper_l0_l2.json").read_text())["layers"]
    rows = [{**row, "layer": layer} for layer, each in layers.items() for row in each["rows"]]
    return pd.DataFrame(rows).rename(columns={"activation": "architecture", "l0_norm": "l0", "l2_loss": "loss"})


@pytest.fixture(scope="module")
def result():
    metrics = AFAMetrics(16)
    x = torch.randn(60, 8)
    metrics.update(x, torch.rand(60, 16), torch.randn(16, 8), torch.randn(8), 0.9 * x)
    return metrics.compute()


def panels(figure) -> list:
    return [axis for axis in figure.axes if axis.get_visible()]


def test_zf_plot_has_a_panel_per_layer_with_line_and_bands(tokens):
    figure = plots.zf_plot(tokens)
    assert [axis.get_title() for axis in panels(figure)] == [f"layer {i}" for i in range(1, 13)]
    for axis in panels(figure):
        assert axis.get_xlim() == axis.get_ylim()
        slopes = [line.get_ydata()[1] / line.get_xdata()[1] for line in axis.lines]
        expected = [1, 1.25**-0.5, 0.75**-0.5, 1.5**-0.5, 0.5**-0.5, 2**-0.5]
        assert sorted(slopes) == pytest.approx(sorted(expected))
        assert len(axis.collections[0].get_offsets()) == 1000


def test_on_the_bands_epsilon_times_n_minus_one_is_c():
    for c, slope in bands():
        value = epsilon_lbo(torch.tensor(1.0, dtype=torch.float64), torch.tensor(slope, dtype=torch.float64), 100)
        assert value.item() * 99 == pytest.approx(c)


def test_points_are_where_the_tokens_are_and_colour_is_density(result):
    figure = plots.zf_plot(result, centered=True)
    (axis,) = panels(figure)
    points = axis.collections[0]
    drawn = np.array(sorted(points.get_offsets().tolist()))
    expected = result.tokens[["centered_dense_norm", "centered_feature_norm"]].to_numpy()
    np.testing.assert_allclose(drawn, expected[expected[:, 0].argsort()])
    assert point_density(np.r_[np.zeros(50), 9.0], np.r_[np.zeros(50), 9.0])[-1] < 0.1
    assert np.ptp(points.get_array()) > 0


def test_norms_of_many_magnitudes_have_logarithmic_axes_and_outliers_do_not_stretch_them():
    def panel(z: np.ndarray):
        return zf_panel(TokenGroup(pd.DataFrame({"dense_norm": z, "feature_norm": z}), 0), "", 5000, rescale=True)

    assert panel(np.geomspace(1, 1e4, 200)).log
    assert not panel(np.linspace(50, 60, 200)).log
    stretched = panel(np.r_[np.linspace(50, 60, 4000), 5000.0])
    assert stretched.high < 100
    assert stretched.n_outside == 1
    assert panel(np.linspace(50, 60, 4000)).n_outside == 0


def test_more_tokens_than_are_drawn_are_sampled(tokens):
    figure = plots.zf_plot(tokens[tokens.layer == 3], max_points=150)
    assert len(panels(figure)[0].collections[0].get_offsets()) == 150


def test_half_violins_mark_the_published_best_and_worst_layers(tokens):
    figure = plots.eps_lbo_plot(tokens)
    golden = json.loads((DATA / "zf_gpt2_small.json").read_text())["gpt2-small-res-jb"]
    for axis, name in zip(figure.axes, ("nmse", "elbo"), strict=True):
        marks = {m: [line for line in axis.lines if line.get_marker() == m] for m in ("*", "X", "o")}
        assert [round(line.get_xdata()[0]) + 1 for line in marks["*"]] == [golden[f"best_layer_{name}"]]
        assert [round(line.get_xdata()[0]) + 1 for line in marks["X"]] == [golden[f"worst_layer_{name}"]]
        medians = {round(line.get_xdata()[0]) + 1: line.get_ydata()[0] for lines in marks.values() for line in lines}
        assert medians == pytest.approx({x["layer"]: x[f"{name}_median"] for x in golden["layers"]}, rel=1e-5)
        assert axis.get_yscale() == "log"


def test_the_densities_are_those_of_the_logarithms():
    values = 10 ** np.random.default_rng(0).normal(-3, 0.2, 4000)
    grid, density = log_density(values)
    assert grid[density.argmax()] == pytest.approx(1e-3, rel=0.15)
    assert density.max() == 1
    assert (density > 0).all()
    assert grid.min() == pytest.approx(np.quantile(values, 0.005), rel=1e-3)


def test_l0_plot_has_a_line_per_architecture_and_a_panel_per_layer(runs):
    figure = plots.l0_plot(runs, d_in=768)
    assert [axis.get_title() for axis in panels(figure)] == ["layer 6", "layer 7", "layer 8"]
    for axis in panels(figure):
        assert [line.get_label() for line in axis.lines[:3]] == ["batchtopk", "topafa", "topk"]
        assert axis.lines[3].get_xdata() == [768, 768]
        assert [text.get_text() for text in axis.texts] == ["d_in = 768"]
        for line in axis.lines[:3]:
            assert (np.diff(line.get_xdata()) > 0).all()
        assert len({(line.get_color(), line.get_marker()) for line in axis.lines[:3]}) == 3


# ---- under layer_norm


def layer_norm_tokens(n: int = 200) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    ratio, std = rng.uniform(0.8, 1.2, n), rng.uniform(1, 10, n)
    return pd.DataFrame({"dense_norm": np.full(n, 8.0), "feature_norm": 8 * ratio, "token_std": std})


def test_equal_dense_norms_are_drawn_times_the_token_s_standard_deviation():
    table = layer_norm_tokens()
    figure = plots.zf_plot(table)
    (axis,) = panels(figure)
    z, f = np.asarray(axis.collections[0].get_offsets()).T
    np.testing.assert_allclose(np.sort(z), np.sort(8 * table.token_std))
    np.testing.assert_allclose(np.sort(f / z), np.sort(table.feature_norm / 8))
    for label in (figure.get_supxlabel(), figure.get_supylabel()):
        assert "times the token's standard deviation" in label.replace("\n", " ")
    plain = plots.zf_plot(table, rescale_by_token_std=False)
    assert "standard deviation" not in plain.get_supxlabel()
    assert set(np.asarray(panels(plain)[0].collections[0].get_offsets())[:, 0]) == {8.0}


@pytest.mark.parametrize("without", ["not known", "norms in raw units", "older files"])
def test_norms_that_vary_or_whose_deviation_is_not_known_are_drawn_as_they_are(without):
    table = layer_norm_tokens()
    if without == "not known":
        table["token_std"] = np.nan
    elif without == "older files":
        del table["token_std"]
    else:
        table["dense_norm"] *= table["token_std"]
    figure = plots.zf_plot(table)
    assert "standard deviation" not in figure.get_supxlabel() + figure.get_supylabel()
    points = np.asarray(panels(figure)[0].collections[0].get_offsets())
    np.testing.assert_allclose(np.sort(points[:, 0]), np.sort(table.dense_norm))


def test_beside_others_such_panels_are_marked(result):
    table = pd.concat([result.tokens.assign(sae="plain"), layer_norm_tokens().assign(sae="ln")])
    figure = plots.zf_plot(table)
    assert [axis.get_title() for axis in panels(figure)] == ["plain", "ln (times std)"]
    assert "standard deviation where marked (times std)" in figure.get_supxlabel().replace("\n", " ")


def test_an_sae_with_layer_norm_is_drawn_so_from_its_result_and_from_the_files_of_an_evaluation(tmp_path, monkeypatch):
    sae = TopAFASAE(TopAFASAEConfig(d_in=8, d_sae=16, normalize_activations="layer_norm"))
    x = torch.randn(100, 8) * torch.linspace(1, 9, 100)[:, None]
    found = evaluate_activations(sae, x)
    assert found.tokens.dense_norm.std() < 1e-4
    monkeypatch.setattr("sae_lens_afa.reports.folder.draw_plots", lambda *_: None)
    settings = {"model": "m", "dataset": "d"}
    write_report(tmp_path / "out", {"sae": found}, {"sae": {"hook_name": "h"}}, settings, per_token=False)
    for data in (found, read_tokens(tmp_path / "out")):
        z = np.asarray(panels(plots.zf_plot(data))[0].collections[0].get_offsets())[:, 0]
        np.testing.assert_allclose(np.sort(z), np.sort(found.tokens.dense_norm * x.std(-1).numpy()), rtol=1e-5)
    # The metrics are as they were, in the SAE's own space.
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["saes"]["sae"]["metrics"] == found.to_dict()
    raw = evaluate_activations(sae, x, rescale_by_token_std=True)
    assert "standard deviation" not in plots.zf_plot(raw).get_supxlabel(), "nothing more to rescale"


# ---- tokens with NaN


def test_tokens_with_nan_are_left_out_and_counted(result, tmp_path):
    table = result.tokens.copy()
    table.loc[3, "dense_norm"], table.loc[9, "feature_norm"] = np.nan, np.inf
    figure = plots.zf_plot(table, save=tmp_path / "zf.html")
    (axis,) = panels(figure)
    assert [text.get_text() for text in axis.texts] == ["2 with NaN or ∞ left out"]
    assert len(axis.collections[0].get_offsets()) == 58
    assert "2 with NaN or ∞ left out" in texts_of(layout_of((tmp_path / "zf.html").read_text()))
    figure = plots.eps_lbo_plot(table.assign(sae="a"), save=tmp_path / "lbo.html")
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["a\n2 with NaN or ∞ left out"]
    assert "2 with NaN" in json.loads('"' + (tmp_path / "lbo.html").read_text().split('"x":["a')[1].split('"')[0] + '"')


def test_results_say_how_many_they_left_out(result):
    damaged = result.with_values({"n_nonfinite": 7})
    (axis,) = panels(plots.zf_plot(damaged))
    assert [text.get_text() for text in axis.texts] == ["7 with NaN or ∞ left out"]
    figure = plots.l0_plot({"topk": [damaged, damaged], "top_afa": [result]})
    assert [text.get_text() for text in figure.legends[0].texts] == ["topk\n14 with NaN or ∞ left out", "top_afa"]


# ---- architectures


def test_each_architecture_has_its_own_colour_always():
    names = sorted({*SAE_CLASS_REGISTRY, *SAE_TRAINING_CLASS_REGISTRY})
    together = styles_of(names)
    assert len({style.color for style in together.values()}) == len(names)
    assert len({(style.marker, style.symbol, style.color) for style in together.values()}) == len(names)
    others = ["mine", "another", "topk, published"]
    for name in names:
        assert styles_of([*others, name])[name] == styles_of([name])[name] == together[name]


def test_other_names_have_further_ones_that_are_no_two_alike():
    others = [f"arm {i}" for i in range(40)]
    names = [*others, "top_afa", "topk", "topk, published", "topk, ours"]
    styles = styles_of(names)
    assert list(styles) == names
    assert len(set(styles.values())) == len(names)
    assert styles_of(reversed(names)) == styles, "the order does not matter"
    assert styles["topk, published"].color == styles["topk, ours"].color == styles["topk"].color
    assert {styles[name].color for name in others}.isdisjoint(
        style.color for style in styles_of(["topk", "top_afa"]).values()
    )
    few = styles_of(others[:12])
    assert len({style.color for style in few.values()}) == 12


def test_pictures_and_pages_have_these_colours(runs, tmp_path):
    figure = plots.l0_plot(runs.replace({"topafa": "top_afa"}), save=tmp_path / "l0.html")
    styles = styles_of(["batchtopk", "top_afa", "topk"])
    for axis in panels(figure):
        assert {line.get_label(): line.get_color() for line in axis.lines} == {n: s.color for n, s in styles.items()}
    legend = {line.get_label(): line.get_color() for line in figure.legends[0].get_lines()}
    assert legend == {name: style.color for name, style in styles.items()}
    for trace in data_of_page((tmp_path / "l0.html").read_text()):
        assert trace["line"]["color"] == styles[trace["name"]].color
        assert trace["marker"]["symbol"] == styles[trace["name"]].symbol


# ---- what is around the data

LONG = (
    "somewhere/on/a/disk/with/long/paths/meta-llama/Llama-3.1-70B-Instruct-with-a-suffix, a-corpus-with-a-name"
    " (tokenised by somebody, held out)\nand a second line: $1 and $2"
)


def assert_whole(figure) -> None:
    """Nothing leaves the figure, and its legend lies over no data."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = figure.get_tightbbox(canvas.get_renderer())  # in inches
    assert drawn.x0 > -0.01
    assert drawn.y0 > -0.01
    width, height = figure.get_size_inches()
    assert drawn.x1 < width + 0.01
    assert drawn.y1 < height + 0.01
    for axis in panels(figure):
        assert not figure.legends[0].get_window_extent().overlaps(axis.get_window_extent())


@pytest.mark.parametrize("n", [1, 5])
def test_titles_of_any_length_are_whole(result, runs, n):
    names = ["", "blocks.10.hook_resid_pre/trainer_5/with_a_very_long_name_of_its_own", "c", "d", "e"]
    some = {names[i] if n > 1 else "": result for i in range(n)}
    assert_whole(plots.zf_plot(some, title=LONG))
    assert_whole(plots.eps_lbo_plot(some, title=LONG))
    layers = runs.assign(layer=[f"blocks.{i % n}.hook_resid_pre of a model" for i in range(len(runs))])
    figure = plots.l0_plot(layers, d_in=768, title=LONG, loss_label=LONG)
    assert_whole(figure)
    title = figure._suptitle.get_window_extent()
    assert not title.overlaps(figure.legends[0].get_window_extent())
    assert not any(title.overlaps(axis.get_window_extent()) for axis in panels(figure))


def test_many_architectures_have_a_legend_beside_the_data():
    table = pd.DataFrame([{"architecture": f"arm number {i}", "l0": 9.0 + i, "loss": 0.1} for i in range(30)])
    assert_whole(plots.l0_plot(table, title=LONG))


def test_pages_have_the_labels_and_lines_of_their_picture(result, runs, tmp_path):
    figure = plots.zf_plot({"a": result, "b": result}, title=LONG, save=tmp_path / "zf.html")
    page = layout_of((tmp_path / "zf.html").read_text())
    for text in (figure.get_supxlabel(), figure.get_supylabel(), LONG):
        assert text.replace("\n", " ") in texts_of(page)
    figure = plots.eps_lbo_plot(result, save=tmp_path / "lbo.html")
    page = layout_of((tmp_path / "lbo.html").read_text())
    for axis in figure.axes:
        assert f"{axis.get_ylabel()}, log10" in texts_of(page)
    figure = plots.l0_plot(
        runs, d_in=768, lines={"7": {"true L0": 99.5}}, levels={"8": 0.01}, loss_label="MSE", save=tmp_path / "l0.html"
    )
    page = layout_of((tmp_path / "l0.html").read_text())
    assert "MSE" in texts_of(page)
    assert "active features per token (L0)" in texts_of(page)
    marked = [[text.get_text() for text in axis.texts] for axis in panels(figure)]
    assert marked == [["d_in = 768"], ["d_in = 768", "true L0"], ["d_in = 768"]]
    shapes = [(shape["xref"], shape["x0"], shape["y0"]) for shape in page["shapes"]]
    assert shapes == [("x", 768, 0), ("x2", 768, 0), ("x2", 99.5, 0), ("x3", 768, 0), ("x3 domain", 0, 0.01)]
    assert texts_of(page).count("true L0") == 1
    assert panels(figure)[2].lines[-1].get_ydata()[0] == 0.01


def page_json(page: str) -> tuple[list, dict]:
    """The data and the layout that a page draws."""
    call = page[page.index("Plotly.newPlot(") :]
    data, end = json.JSONDecoder().raw_decode(call, call.index("["))
    layout, _ = json.JSONDecoder().raw_decode(call, call.index("{", end))
    return data, layout


def data_of_page(page: str) -> list:
    return page_json(page)[0]


def layout_of(page: str) -> dict:
    return page_json(page)[1]


def texts_of(layout: dict) -> str:
    axes = [value["title"]["text"] for key, value in layout.items() if "axis" in key and "title" in value]
    texts = [*axes, layout["title"].get("text", ""), *(note["text"] for note in layout.get("annotations", []))]
    return "\n".join(html.unescape(text).replace("<br>", " ") for text in texts)


def test_l0_plot_takes_results_by_architecture(result):
    figure = plots.l0_plot({"topk": [result, result], "top_afa": [result]}, loss="nmse_median")
    (axis,) = panels(figure)
    assert axis.lines[0].get_ydata()[0] == result.nmse_median
    assert figure.get_supylabel() == "nmse_median"


@pytest.mark.parametrize("kind", ["zf", "lbo", "l0"])
def test_files_are_whole_and_nothing_else_is_left(tokens, runs, tmp_path, kind):
    few = tokens[tokens.layer <= 2]
    files = [tmp_path / "new" / f"plot.{suffix}" for suffix in ("png", "svg", "pdf", "html")]
    {
        "zf": lambda: plots.zf_plot(few, title="A title", save=files),
        "lbo": lambda: plots.eps_lbo_plot(few, title="A title", save=files),
        "l0": lambda: plots.l0_plot(runs, title="A title", save=files),
    }[kind]()
    assert sorted((tmp_path / "new").iterdir()) == sorted(files)
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF", "html": b"<!doctype html>"}
    for file in files:
        assert file.read_bytes().lower().startswith(starts[file.suffix[1:]].lower())
    page = files[-1].read_text()
    assert "A title" in page
    assert 'src="http' not in page


def test_the_page_shows_each_token_in_its_context(result, tmp_path):
    table = result.tokens.assign(context="God said, Let there be <b>", token=" be <b>")
    plots.zf_plot(table, save=tmp_path / "zf.html")
    page = (tmp_path / "zf.html").read_text()
    # The text is escaped for HTML, and the page's JSON escapes < and > once more.
    assert r"God said, Let there\u003cb\u003e be &lt;b&gt;\u003c\u002fb\u003e" in page
    assert "epsilon_lbo" in page


def test_several_results_are_named(result):
    assert [axis.get_title() for axis in panels(plots.zf_plot({"first": result, "second": result}))] == [
        "first",
        "second",
    ]


def test_the_user_s_style_neither_matters_nor_changes(result):
    import matplotlib

    with matplotlib.rc_context({"font.size": 33}):
        figure = plots.zf_plot(result)
        assert matplotlib.rcParams["font.size"] == 33
    assert panels(figure)[0].xaxis.get_ticklabels()[0].get_fontsize() < 12


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r, t: plots.zf_plot(r, save="x.gif"), ValueError, r"x\.gif.*\.png, \.svg, \.pdf, \.html"),
        (lambda r, t: plots.zf_plot([r]), TypeError, "expected an AFAResult, a mapping .* got list"),
        (lambda r, t: plots.zf_plot(t.iloc[:0]), ValueError, "there are no tokens"),
        (lambda r, t: plots.zf_plot(t, centered=True), ValueError, "layer 1 has no values of 'centered_dense_norm'"),
        (lambda r, t: plots.eps_lbo_plot(t.assign(nmse=0.0)), ValueError, "no value of 'nmse' is above 0"),
        (lambda r, t: plots.zf_plot(type(r).from_json(r.to_json())), ValueError, "holds no tokens"),
        (lambda r, t: plots.l0_plot(t), ValueError, r"no columns \['architecture', 'l0', 'loss'\]"),
        (lambda r, t: plots.l0_plot({}), ValueError, "nothing to plot"),
        (lambda r, t: plots.l0_plot(3), TypeError, "got int"),
        (lambda r, t: plots.l0_plot({"a": r}), TypeError, "a list of AFAResult .* 'a': AFAResult"),
        (lambda r, t: plots.l0_plot({"a": [r]}, loss="nmse_men"), ValueError, "^loss must be a metric .* nmse_mean"),
    ],
)
def test_bad_data_is_named(call, error, message, result, tokens):
    with pytest.raises(error, match=message):
        call(result, tokens)


def test_the_hover_text_names_what_is_to_the_right(tmp_path):
    table = pd.DataFrame({"architecture": ["a"], "l0": [12.0], "samples": [640.0], "loss": [0.5]})
    for plot, text in ((plots.l0_plot, "L0 12<br>"), (plots.samples_plot, "samples 640<br>")):
        plot(table, save=tmp_path / "a.html")
        page = (tmp_path / "a.html").read_text()
        assert text in page.replace("\\u003c", "<").replace("\\u003e", ">")
