"""top_afa's penalty on spread: what it adds to a step, and that without it nothing is added."""

from __future__ import annotations

import pytest
import torch
from top_afa_helpers import D_IN, D_SAE, build, step

from sae_lens_afa import TopAFATrainingSAEConfig
from sae_lens_afa.functional import sparsity_loss

DEAD = torch.arange(D_SAE) % 3 == 0


@pytest.mark.parametrize("field", ["sparsity_coefficient", "sparsity_warm_up_steps"])
def test_a_bad_value_names_its_field(field):
    with pytest.raises(ValueError, match=rf"TopAFATrainingSAEConfig\.{field} must be .* >= 0, got -1"):
        TopAFATrainingSAEConfig(**{"d_in": D_IN, "d_sae": D_SAE, field: -1})


def test_without_a_coefficient_nothing_is_added():
    sae = build()
    assert set(sae.get_coefficients()) == {"afa"}
    assert set(step(sae, torch.randn(5, D_IN), DEAD).losses) == {
        "mse_loss", "afa_loss", "auxiliary_reconstruction_loss",
    }  # fmt: skip


@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_with_one_the_loss_and_its_gradients_are_added(normalize, reduction):
    x, options = torch.randn(9, D_IN), {"normalize_activations": normalize, "loss_reduction": reduction}
    plain, sae = build(**options), build(sparsity_coefficient=0.3, sparsity_warm_up_steps=50, **options)
    sae.load_state_dict(plain.state_dict())
    assert sae.get_coefficients()["sparsity"] == (0.3, 50)
    without = step(plain, x, DEAD)
    out = step(sae, x, DEAD, afa=sae.cfg.afa_coefficient, sparsity=0.2)  # of the warm-up
    z = plain.run_time_activation_norm_fn_in(x)
    scale = D_IN if reduction == "sum" else 1
    added = 0.2 * scale * sparsity_loss(without.feature_acts, plain.W_dec, z - plain.b_dec)
    torch.testing.assert_close(out.losses["sparsity_loss"], added)
    for name, loss in without.losses.items():
        assert torch.equal(out.losses[name], loss)
    torch.testing.assert_close(out.loss, without.loss + added)
    out.loss.backward()
    (without.loss + added).backward()
    for p, expected in zip(sae.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, expected.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("factor", [0.125, 16.0])
def test_all_terms_of_the_loss_scale_alike_with_the_input(factor):
    x, options = torch.randn(30, D_IN), {"normalize_activations": "none", "sparsity_coefficient": 0.3}
    sae = build(**options)
    coefficients = {"afa": 0.1, "sparsity": 0.3}
    before = step(sae, x, DEAD, **coefficients).losses
    sae.b_dec.data *= factor
    after = step(sae, factor * x, DEAD, **coefficients).losses
    for name in before:
        torch.testing.assert_close(after[name], factor**2 * before[name])


def test_it_makes_codes_sparser():
    l0 = {}
    for coefficient in (0.0, 0.1):
        torch.manual_seed(0)
        sae = build(normalize_activations="none", sparsity_coefficient=coefficient)
        optimizer = torch.optim.Adam(sae.parameters(), lr=0.01)
        directions = torch.nn.functional.normalize(torch.randn(D_SAE, D_IN), dim=-1)
        for _ in range(200):
            x = torch.rand(64, D_SAE) * (torch.rand(64, D_SAE) < 0.1) @ directions
            sae.train()
            step(sae, x, afa=1 / 32, sparsity=coefficient).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        l0[coefficient] = (sae.encode(x) > 0).sum(-1).float().mean()
    assert l0[0.1] < 0.7 * l0[0.0]
