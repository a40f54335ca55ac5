"""The plots: what they draw, what they save, and that they are imported only when they are drawn."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from sae_lens_afa import AFAMetrics, plots
from sae_lens_afa._plot_data import bands, log_density, point_density, zf_panel
from sae_lens_afa.functional import epsilon_lbo

DATA = Path(__file__).parent / "data"


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
    layers = json.loads((DATA / "paper_l0_l2.json").read_text())["layers"]
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
        return zf_panel(pd.DataFrame({"dense_norm": z, "feature_norm": z}), "", 5000)

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
        assert [line.get_label() for line in axis.lines] == ["batchtopk", "topafa", "topk", "L0 = d_in = 768"]
        for line in axis.lines[:3]:
            assert (np.diff(line.get_xdata()) > 0).all()
        assert len({(line.get_color(), line.get_marker()) for line in axis.lines[:3]}) == 3


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
    ],
)
def test_bad_data_is_named(call, error, message, result, tokens):
    with pytest.raises(error, match=message):
        call(result, tokens)


def test_importing_the_package_imports_no_plotting():
    code = (
        "import sys, sae_lens; before = set(sys.modules); import sae_lens_afa\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "assert not new & {'matplotlib', 'plotly', 'numba', 'triton'}, new\n"
        "assert sae_lens_afa.plots.zf_plot and 'matplotlib.figure' not in set(sys.modules) - before"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
