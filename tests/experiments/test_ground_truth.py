"""The ground-truth benchmark from its command to its report."""

from __future__ import annotations

import json
import math
import signal
from dataclasses import fields, replace

import pandas as pd
import pytest
import torch
from sae_lens.synthetic import eval_sae_on_synthetic_data
from typer.testing import CliRunner

from sae_lens_afa.cli import app
from sae_lens_afa.experiments import Arm, Run, ground_truth_sweep, run_sweep
from sae_lens_afa.experiments.ground_truth import PRESETS, GroundTruthSweep
from sae_lens_afa.experiments.kept_worlds import fresh_batches, made
from sae_lens_afa.experiments.measures import inference_sae, mdl_bits, measure
from sae_lens_afa.experiments.report import report_text, write_report
from sae_lens_afa.experiments.rows import measured_row
from sae_lens_afa.experiments.side_by_side import OwnRandom, Trained, build
from sae_lens_afa.experiments.tables import runs_table
from sae_lens_afa.experiments.worlds import WORLDS


class Undrawn(GroundTruthSweep):
    """The sweep without its plots, which take longer than its training."""

    plots = ()


def undrawn(sweep, kind=Undrawn):
    return kind(**{field.name: getattr(sweep, field.name) for field in fields(sweep)})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "out"
    return run_sweep(ground_truth_sweep("tiny"), folder, command="sae-lens-afa sweep ...", progress=False)


def test_description_length_of_the_published_example():
    assert mdl_bits(65, 25_000) == pytest.approx(1404.63, abs=0.005)
    with pytest.raises(ValueError, match="d_sae must be at least 1"):
        mdl_bits(1, 0)


def test_there_is_a_row_for_every_run(finished):
    table = pd.read_csv(finished.folder / "runs.csv")
    pd.testing.assert_frame_equal(table, pd.read_parquet(finished.folder / "runs.parquet"), check_dtype=False)
    arms = PRESETS["tiny"].arms
    assert len(table) == 2 * sum(len(arm.values) for arm in arms) == len(finished.rows)
    assert set(table["status"]) == {"ok"}
    assert set(table["seed"]) == {0, 1}
    for metric in (
        "l0_mean", "true_l0", "explained_variance_raw", "mse", "mcc", "f1", "uniqueness", "dead_latents", "shrinkage",
        "norm_ratio_median", "epsilon_lbo_median", "l0_empty", "mdl_bits",
    ):  # fmt: skip
        assert table[metric].notna().all(), metric
    assert table.loc[table["label"] == "topk", "l0_mean"].max() <= 3
    assert [mdl_bits(row["l0_mean"], 24) for row in finished.rows] == [row["mdl_bits"] for row in finished.rows]
    assert "time" not in " ".join(table.columns)


def test_the_report_has_every_setting_and_the_command(finished):
    text = (finished.folder / "report.md").read_text()
    for part in (
        "sae-lens-afa sweep ...", "6 runs, 0 of them failed", "Best of each grid: highest mean MCC", "Welch's test",
        "## The whole grid", "The training is 4 times as long", "torch ",
    ):  # fmt: skip
        assert part in text
    grid = text.partition("## The whole grid")[2].partition("## Settings")[0]
    assert grid.count("| tiny |") == 3
    assert all(f" {heading} |" in grid for heading in ("L0", "MCC", "true L0", "explained variance (raw)", "MDL bits"))
    settings = json.loads(text.partition("```json\n")[2].partition("\n```")[0])
    assert settings == json.loads(json.dumps(ground_truth_sweep("tiny").settings()))
    for name in ("mcc", "f1", "mse"):
        assert f"l0_{name}.png" in text
        assert (finished.folder / f"l0_{name}.html").stat().st_size > 1000


def test_a_sweep_that_was_stopped_goes_on_and_ends_the_same(finished, tmp_path):
    sweep = undrawn(ground_truth_sweep("tiny"))
    assert run_sweep(sweep, tmp_path / "out", progress=False, max_groups=1) is None
    first = tmp_path / "out" / "runs" / "tiny-seed0-20-steps.json"
    before = first.stat().st_mtime_ns

    def killed(steps: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep.run_group(sweep.groups()[1], killed)
    assert [path.name for path in (tmp_path / "out" / "runs").iterdir()] == ["tiny-seed0-20-steps.json"]
    result = run_sweep(sweep, tmp_path / "out", progress=False)
    assert first.stat().st_mtime_ns == before
    assert result.rows == finished.rows


def test_a_sweep_that_grows_runs_what_is_new_and_ends_the_same(finished, tmp_path):
    first = undrawn(ground_truth_sweep("tiny", arms=PRESETS["tiny"].arms[:1], seeds=[1]))
    run_sweep(first, tmp_path / "out", progress=False)
    trained: list[str] = []

    class Watched(Undrawn):
        def run_group(self, group, advance):
            trained.extend(f"{group.seed} {run.name}" for _, run in group.members)
            return super().run_group(group, advance)

    result = run_sweep(undrawn(ground_truth_sweep("tiny"), Watched), tmp_path / "out", progress=False)
    assert result.rows == finished.rows
    assert trained == [
        "0 topk k=2",
        "0 topk k=3",
        "0 top_afa afa_coefficient=0.03125",
        "1 top_afa afa_coefficient=0.03125",
    ]
    assert (tmp_path / "out" / "runs.csv").read_text() == (finished.folder / "runs.csv").read_text()


def test_runs_that_fail_are_shown_and_not_dropped(tmp_path, capsys):
    # SAELens' TopK raises under layer_norm as soon as a latent is dead.
    arms = [Arm("topk", "k", (1,), {"normalize_activations": "layer_norm"}), Arm("standard", "l1_coefficient", (0.1,))]
    result = run_sweep(undrawn(ground_truth_sweep("tiny", arms=arms, steps=40)), tmp_path / "out")
    assert result.n_failed == 2
    assert "2 failed" in str(result)
    table = pd.read_csv(tmp_path / "out" / "runs.csv")
    assert table["status"].str.startswith("failed: step ").sum() == 2
    text = (tmp_path / "out" / "report.md").read_text()
    assert "4 runs, 2 of them failed" in text
    assert text.partition("## Failures")[2].count("- tiny, topk k=1, 40 steps, lr 0.01, seed") == 2
    assert "No setting qualifies of: topk (tiny)." in text
    assert "failed: step" in capsys.readouterr().out


def test_a_sweep_of_failures_only_still_reports(tmp_path):
    arms = [Arm("topk", "k", (1,), {"normalize_activations": "layer_norm"})]
    result = run_sweep(ground_truth_sweep("tiny", arms=arms, steps=40), tmp_path / "out", progress=False)
    assert result.n_failed == len(result.rows) == 2
    assert "No setting qualifies." in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    "architecture", ["standard", "topk", "batchtopk", "jumprelu", "mutual_choice", "top_afa", "afa_threshold"]
)
def test_metrics_are_those_of_sae_lens_evaluator(architecture):
    model = made("tiny")
    chooses_k = architecture in ("topk", "batchtopk", "mutual_choice")
    run = Run("a", architecture, "k", 3) if chooses_k else Run("a", architecture, "d_sae", 24)
    trained = build(run, 12, 24, 0, "cpu")
    with torch.no_grad():  # a bias, so that means matter
        trained.b_dec += 0.1
    sae = inference_sae(trained)
    with OwnRandom("test", 5)():
        expected = eval_sae_on_synthetic_data(sae, model.feature_dict, model.activation_generator, 300, 128)
    with OwnRandom("test", 5)():
        test = torch.cat([model.sample(n) for n in (128, 128, 44)])
    metrics = measure(sae, test)
    assert metrics["l0_mean"] == pytest.approx(expected.sae_l0)
    assert metrics["dead_latents"] == expected.dead_latents
    # SAELens sums in float32, ours in float64: 300 tokens of 12 numbers.
    assert metrics["shrinkage"] == pytest.approx(expected.shrinkage, rel=1e-5)
    literal = 1 - ((test - sae(test)) ** 2).sum() / ((test - test.mean(0)) ** 2).sum()
    assert metrics["explained_variance_raw"] == pytest.approx(literal.item(), abs=1e-5)
    assert metrics["mse"] == pytest.approx(((test - sae(test)) ** 2).mean().item(), rel=1e-5)


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "top_afa", "afa_threshold"])
def test_tokens_that_become_nan_are_counted_apart(architecture):
    run = Run("a", architecture, "k", 3) if architecture == "topk" else Run("a", architecture, "d_sae", 24)
    sae = inference_sae(build(run, 12, 24, 0, "cpu"))
    test = torch.randn(40, 12)
    clean = measure(sae, test)
    assert "n_nonfinite" not in clean
    damaged = torch.cat([torch.full((2, 12), torch.nan), test, torch.full((1, 12), torch.inf)])
    assert measure(sae, damaged) == pytest.approx({**clean, "n_nonfinite": 3})
    with pytest.raises(ValueError, match="no tokens to judge: all 2 hold a NaN or an infinity"):
        measure(sae, damaged[:2])


def test_the_report_says_which_runs_have_them(finished):
    rows = [dict(row) for row in finished.rows]
    sweep = ground_truth_sweep("tiny")
    assert "## Tokens with NaN" not in report_text(sweep, rows, [], "", [])
    rows[0]["n_nonfinite"] = 3
    name = f"{rows[0]['stream']}, {rows[0]['label']}"
    assert f"## Tokens with NaN or infinity\n\n- {name}" in report_text(sweep, rows, [], "", [])
    assert list(runs_table(rows).n_nonfinite.fillna(0))[:2] == [3, 0]


def test_the_pages_have_the_lines_of_their_pictures(finished, tmp_path):
    page = (finished.folder / "l0_mcc.html").read_text()
    assert '"text":"true L0"' in page
    assert '"text":"1 - MCC"' in page
    for densest, drawn in ((0.3, True), (0.2, False)):  # of d_in
        rows = [{**row, "l0_mean": densest * row["d_in"]} for row in finished.rows]
        write_report(tmp_path, ground_truth_sweep("tiny"), rows, [], "")
        assert ('"text":"d_in"' in (tmp_path / "l0_mcc.html").read_text()) == drawn


def test_the_data_depends_on_the_seed_only():
    first = next(fresh_batches("tiny", 8, 1))
    torch.rand(3)
    assert torch.equal(first, next(fresh_batches("tiny", 8, 1)))
    assert not torch.equal(first, next(fresh_batches("tiny", 8, 2)))


@pytest.mark.parametrize(
    ("name", "l0"), [("zipf-2x", 2.3), ("zipf-4x", 2.83), ("zipf-8x", 3.62), ("zipf-4x-wide", 4.0)]
)
def test_zipfian_worlds_have_the_stated_true_l0(name, l0):
    world = WORLDS[name]
    cfg = world.config()
    assert cfg.firing_probability.generate(cfg.num_features).sum().item() == pytest.approx(l0, abs=0.05)
    assert world.num_features / world.hidden_dim == {"zipf-2x": 2, "zipf-8x": 8}.get(name, 4)


def test_special_worlds_are_what_they_say():
    assert WORLDS["correlated"].config().correlation.rank == 16
    assert WORLDS["hierarchical"].config().hierarchy.max_depth == 2
    strengths = WORLDS["strengths-vary"].config().mean_firing_magnitudes.generate(10_000, seed=0)
    assert strengths.min() == 0.25
    assert strengths.max() > 4  # of so many, |N(0, 1.25^2)| passes it in 14
    assert math.prod((WORLDS["hierarchical"].hierarchy[0], 1 + 4 + 16)) >= WORLDS["hierarchical"].num_features


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "fast"}, "unknown preset 'fast'; there are quick, full, tiny"),
        ({"worlds": ["flat"]}, "unknown world 'flat'; there are zipf-2x"),
        ({"seeds": [1, 1]}, "seeds must be different"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"device": "abacus"}, "device 'abacus' cannot be used"),
        ({"arms": [Arm("nope", "k", (1,))]}, "unknown architecture 'nope'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(options, message):
    with pytest.raises(ValueError, match=message):
        ground_truth_sweep(**{"preset": "tiny", **options})


@pytest.mark.slow
def test_a_killed_process_leaves_whole_files_and_the_next_one_goes_on(finished, tmp_path, client):
    first = tmp_path / "out" / "runs" / "tiny-seed0-20-steps.json"
    script = f"""
import os, signal, threading, time
from pathlib import Path
from sae_lens_afa.experiments import ground_truth_sweep, run_sweep
def kill():
    while not Path({str(first)!r}).is_file():
        time.sleep(0.1)  # made a hundredth of it by fork_server
    os.kill(os.getpid(), signal.SIGKILL)
killer = threading.Thread(target=kill)
killer.start()
run_sweep(ground_truth_sweep("tiny"), {str(tmp_path / "out")!r}, progress=False)
killer.join()
"""
    client.run(script, status=-signal.SIGKILL)
    assert first.is_file()
    assert run_sweep(ground_truth_sweep("tiny"), tmp_path / "out", progress=False).rows == finished.rows


def test_fields_are_checked_too():
    sweep = ground_truth_sweep("tiny")
    with pytest.raises(ValueError, match="worlds must name at least one"):
        replace(sweep, worlds=())
    with pytest.raises(ValueError, match="test_tokens must be at least 2"):
        replace(sweep, test_tokens=1)


def test_an_sae_that_cannot_be_measured_is_a_failed_run():
    trained = Trained(build(PRESETS["tiny"].arms[0].runs()[0], 12, 24, 0, "cpu"))

    def measure(sae):
        raise TypeError("no relation\nmore")

    row = measured_row("tiny", 3, PRESETS["tiny"].arms[0].runs()[0], trained, measure)
    assert row["status"] == "failed: measuring: TypeError: no relation"
    assert (row["stream"], row["seed"], row["d_sae"]) == ("tiny", 3, 24)


def test_presets_train_many_times_the_window_in_which_latents_die():
    for name in ("quick", "full"):
        sweep = ground_truth_sweep(name)
        assert sweep.training.steps >= 10 * sweep.training.dead_feature_window
        assert all(arm.settings.get("feature_choice_start_step", 0) < sweep.training.steps / 2 for arm in sweep.arms)
        assert len(sweep.seeds) == 3


def test_another_number_of_steps_changes_all_that_is_counted_in_steps():
    base, longer = ground_truth_sweep("quick"), ground_truth_sweep("quick", steps=3000)
    assert longer.training_of(longer.groups()[0]) == base.training.with_steps(3000)
    starts = [[run.settings.get("feature_choice_start_step") for run in sweep.runs()] for sweep in (base, longer)]
    assert [start and 3 * start for start in starts[0]] == starts[1]
    assert any(starts[0])
    assert {run.lr for run in ground_truth_sweep("quick", lr=0.01).runs()} == {0.01}
    with pytest.raises(ValueError, match="lr must be a finite number > 0, got 0"):
        ground_truth_sweep("quick", lr=0)
    given = Arm("feature_choice", "k", (3,), {"feature_choice_start_step": 7})
    (run,) = ground_truth_sweep("quick", steps=3000, arms=[given]).runs()
    assert run.settings == given.settings


def test_the_command_runs_refuses_other_settings_and_says_how_to_go_on(tmp_path, monkeypatch):
    args = ["sweep", "ground-truth", "--preset", "tiny", "--output", str(tmp_path / "out"), "--seed", "3",
            "--grid", "topk:k=2,3", "--grid", "mutual_choice:k=2"]  # fmt: skip
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    assert "3 runs" in result.output
    assert "report.md" in result.output
    again = CliRunner().invoke(app, [*args, "--pool", "500"])
    assert "holds a sweep with other settings: pool is null there and 500 here" in str(again.exception)

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("sae_lens_afa.experiments.run_sweep", interrupted)
    stopped = CliRunner().invoke(app, args)
    assert stopped.exit_code == 130
    assert "the same command goes on" in stopped.output


def test_several_budgets_and_rates_grow_in_one_folder_and_are_drawn(tmp_path):
    arms = [Arm("topk", "k", (2,)), Arm("batchtopk", "k", (2,), rates=(0.004,))]
    short = ground_truth_sweep("tiny", seeds=[0], arms=arms, steps=10, lr=0.01)
    first = run_sweep(undrawn(short), tmp_path / "out", progress=False)
    assert first.rows == run_sweep(undrawn(replace(short, budgets=(10,))), tmp_path / "out", progress=False).rows
    longer = ground_truth_sweep("tiny", seeds=[0], arms=arms, steps=[10, 40], lr=[0.01, 0.02])
    result = run_sweep(longer, tmp_path / "out", progress=False)
    assert [(row["label"], row["steps"], row["lr"]) for row in result.rows] == [
        (label, steps, lr) for steps in (10, 40) for label, lr in (("topk", 0.01), ("topk", 0.02), ("batchtopk", 0.004))
    ]
    assert all(row in result.rows for row in first.rows)
    assert len({row["mcc"] for row in result.rows}) == 6
    text = (tmp_path / "out" / "report.md").read_text()
    assert "![samples_mcc](samples_mcc.png)" in text
    assert "10 or 40 steps of 32 tokens, Adam with learning rate 0.01 or 0.02" in text
    assert "| SAE | steps | tiny |" in text
    assert "samples 1280" in (tmp_path / "out" / "samples_mcc.html").read_text()
    one = ground_truth_sweep("tiny", seeds=[0], arms=arms[:1], steps=40, lr=0.02)
    (alone,) = run_sweep(undrawn(one), tmp_path / "alone", progress=False).rows
    assert alone in result.rows
