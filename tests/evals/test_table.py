"""Results as a table for the terminal."""

from __future__ import annotations

import torch
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig

from sae_lens_afa import AFAMetrics, evaluate_activations
from sae_lens_afa.evals import results_table


def test_the_table_says_both_forms_and_leaves_out_what_is_unknown(result):
    text = str(result)
    assert "bias as a feature" in text
    assert "centred" in text
    assert f"{result.epsilon_lbo_median:.3e}" in text
    norms_only = str(AFAMetrics.from_norms(torch.rand(5) + 1, torch.rand(5) + 1, d_sae=9).compute())
    assert "centred" not in norms_only
    assert "L0" not in norms_only
    assert all(line == line.rstrip() for line in text.splitlines())


def test_several_results_stand_side_by_side(result):
    lines = results_table({"first": result, "a longer name": result}).splitlines()
    assert lines[0].split("  ")[-1].strip() == "a longer name"
    assert len({len(line) for line in lines if line.endswith(tuple("0123456789%"))}) == 1


def test_nan_rows_show_in_the_table():
    x = torch.randn(5, 4)
    x[2] = torch.nan
    assert "with NaN or infinity, left out" in str(
        evaluate_activations(StandardSAE(StandardSAEConfig(d_in=4, d_sae=6)), x)
    )
