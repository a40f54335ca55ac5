"""The phases of a run, from Mutual Choice over the fit of the law to Feature Choice, and their state."""

from __future__ import annotations

import copy
import warnings

import choice_reference as reference
import pytest
import torch
from choice_helpers import D_IN, D_SAE, VARIANTS, build, step, train

from sae_lens_afa.saes.zipf import allocate_matches, expected_densities, fit_zipf


def test_feature_choice_starts_at_its_step_with_the_law_of_the_first_phase():
    sae = build("feature_choice late", density_lr=0.2)
    twin = build("mutual_choice", density_lr=0.2)
    twin.load_state_dict({k: v for k, v in sae.state_dict().items() if k in twin.state_dict()})
    for at in range(3):
        x = torch.randn(30, D_IN)
        assert torch.equal(step(sae, x, at).feature_acts, step(twin, x, at).feature_acts)
    assert torch.equal(sae.topk_threshold, twin.topk_threshold)
    fitted, order = fit_zipf(sae.density), sae.density.argsort(descending=True, stable=True)
    out = step(sae, torch.randn(30, D_IN), 3)
    assert sae.zipf_law.tolist() == pytest.approx([fitted.exponent, fitted.offset, 4.0], rel=1e-6)
    n_matches = torch.empty(D_SAE, dtype=torch.int64)
    n_matches[order] = allocate_matches(expected_densities(fitted, D_SAE, 4.0), 120, 30)
    assert torch.equal(out.feature_acts, reference.feature_choice(out.hidden_pre, n_matches.tolist()))
    assert torch.equal(sae.topk_threshold, twin.topk_threshold)
    # From now on the law stands.
    law = sae.zipf_law.clone()
    train(sae, [torch.randn(30, D_IN) for _ in range(12)], start=4)
    assert torch.equal(sae.zipf_law, law)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"prior": "zipf", "zipf_exponent": 0.7}, (0.7, None)),
        ({"prior": "zipf", "zipf_offset": 6.0}, (None, 6.0)),
        ({"prior": "zipf", "zipf_exponent": 0.7, "zipf_offset": 6.0}, (0.7, 6.0)),
        ({"prior": "uniform"}, (0.0, 0.0)),
    ],
)
def test_what_the_config_gives_of_the_law_is_not_fitted(settings, expected):
    sae = build("feature_choice late", **settings)
    train(sae, [torch.randn(30, D_IN) for _ in range(3)])
    fitted = fit_zipf(sae.density, exponent=expected[0], offset=expected[1])
    step(sae, torch.randn(30, D_IN), 3)
    assert sae.zipf_law.tolist() == pytest.approx([fitted.exponent, fitted.offset, 4.0], rel=1e-6)
    assert all(given is None or given == found for given, found in zip(expected, fitted, strict=False))


def test_a_law_that_cannot_be_fitted_is_one_clear_error():
    sae = build("feature_choice late")
    sae.b_enc.data.fill_(-100)
    train(sae, [torch.randn(30, D_IN) for _ in range(3)])
    with pytest.raises(ValueError, match="at least 3 features that fire, 0 of 40 do: observe more tokens, or give"):
        step(sae, torch.randn(30, D_IN), 3)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stop", [2, 3, 5])
def test_a_checkpoint_continues_exactly(tmp_path, variant, stop):
    batches = [torch.randn(30, D_IN) for _ in range(9)]
    whole = build(variant, density_lr=0.3, dying_fraction=0.5)
    optimizer = torch.optim.Adam(whole.parameters(), lr=0.01)
    train(whole, batches[:stop], optimizer)
    whole.save_model(tmp_path)
    saved = copy.deepcopy(optimizer.state_dict())
    train(whole, batches[stop:], optimizer, start=stop)
    resumed = build(variant, density_lr=0.3, dying_fraction=0.5)
    other = torch.optim.Adam(resumed.parameters(), lr=0.01)
    other.load_state_dict(saved)
    resumed.load_weights_from_checkpoint(tmp_path)
    # One step less, as SAELens' trainer counts after a resume.
    train(resumed, batches[stop:], other, start=stop - 1)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0, equal_nan=True, msg=name)


def test_training_lowers_the_error_and_leaves_no_feature_dead():
    torch.manual_seed(1)
    directions = torch.nn.functional.normalize(torch.randn(D_SAE, D_IN), dim=-1)
    batches = [((torch.rand(256, D_SAE) < 0.05) * (1 + torch.rand(256, D_SAE))) @ directions for _ in range(400)]
    sae = build("feature_choice", k=2)
    optimizer = torch.optim.Adam(sae.parameters(), lr=3e-3)
    first = train(sae, batches[:1], optimizer)
    last = train(sae, batches[1:], optimizer, start=1)
    assert last.losses["mse_loss"] < 0.5 * first.losses["mse_loss"]
    assert (last.feature_acts > 0).any(0).all()
    with torch.no_grad():
        assert (sae.eval().encode(torch.cat(batches[-20:])) > 0).any(0).all()


def test_without_a_first_phase_the_law_is_that_of_mutual_choice_on_the_first_batch():
    sae = build("feature_choice", prior="zipf").train()
    with pytest.warns(UserWarning, match=r"fitted to the first batch, of an untrained SAE. Give feature_choice_start"):
        out = step(sae, torch.randn(256, D_IN))
    matched = reference.mutual_choice(out.hidden_pre.detach(), 4 * 256) > 0
    law = fit_zipf(matched.sum(0) / 256)
    torch.testing.assert_close(sae.zipf_law, torch.tensor([law.exponent, law.offset, 4.0]))
    assert int((out.feature_acts > 0).sum()) <= 4 * 256
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(sae, torch.randn(256, D_IN), at=1)
    assert float(sae.zipf_law[0]) == pytest.approx(law.exponent), "settled once"
