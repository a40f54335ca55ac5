"""Dead latents that take the directions of what is lacking."""

from __future__ import annotations

import pytest
import torch
from afa_threshold_helpers import D_IN, D_SAE, build, step, tokens, true_directions
from top_afa_helpers import to_inference

from sae_lens_afa import AFAThresholdTrainingSAE, AFAThresholdTrainingSAEConfig
from sae_lens_afa.saes._reseed import reseed

N_TOKENS = 50


def lacking_one_feature() -> tuple[AFAThresholdTrainingSAE, torch.Tensor, torch.Tensor]:
    """An SAE of which latents 0 to 2 are dead, and tokens of a direction that none stands for."""
    sae = build()
    sae.b_dec.data.zero_()
    lost = true_directions()[0]
    for i in range(3):
        sae.W_dec.data[i] = 0
        sae.W_enc.data[:, i] = 0
    x = torch.rand(N_TOKENS, 1) * lost + 0.5 * lost
    return sae, x, torch.arange(D_SAE) < 3


def test_one_dead_latent_takes_the_direction_that_all_tokens_lack():
    sae, x, dead = lacking_one_feature()
    before = {name: p.detach().clone() for name, p in sae.named_parameters()}
    reseed(sae, dead, torch.zeros(N_TOKENS, D_SAE), x, torch.zeros(N_TOKENS))
    (moved,) = (sae.W_dec[:3].norm(dim=-1) > 0).nonzero().squeeze(-1).tolist()
    torch.testing.assert_close(sae.W_dec[moved], true_directions()[0])
    torch.testing.assert_close(sae.W_enc[:, moved], true_directions()[0])
    others = torch.arange(D_SAE) != moved
    assert torch.equal(sae.W_dec[others], before["W_dec"][others])
    assert torch.equal(sae.W_enc[:, others], before["W_enc"][:, others])
    assert torch.equal(sae.b_dec, before["b_dec"])


def test_no_new_latent_fires_on_the_token_of_another():
    torch.manual_seed(0)
    sae = build()
    residual = tokens(200)
    threshold = 0.6 * residual.norm(dim=-1)
    dead = torch.ones(D_SAE, dtype=torch.bool)
    before = sae.W_dec.detach().clone()
    reseed(sae, dead, torch.zeros(200, D_SAE), residual, threshold)
    moved = (sae.W_dec != before).any(-1)
    assert 5 < int(moved.sum()) < D_SAE
    fires = residual @ sae.W_dec[moved].T > threshold[:, None]
    seeds = torch.nn.functional.normalize(residual, dim=-1) @ sae.W_dec[moved].T > 1 - 1e-5
    assert seeds.any(0).all()
    # Of two of them the one drawn later does not fire on the token of the earlier: never both ways.
    both = torch.stack([fires[seed.nonzero()[0, 0]] for seed in seeds.T])
    assert not (both & both.T & ~torch.eye(len(both), dtype=torch.bool)).any()


def test_rows_keep_their_norms_and_activations_their_scale():
    for norm in (0.5, 1.0, 4.0):
        sae, x, _ = lacking_one_feature()
        sae.W_dec.data[0] = norm * torch.nn.functional.normalize(torch.randn(D_IN), dim=0)
        reseed(sae, torch.arange(D_SAE) == 0, torch.zeros(N_TOKENS, D_SAE), x, torch.zeros(N_TOKENS))
        torch.testing.assert_close(sae.W_dec[0], norm * true_directions()[0])
        torch.testing.assert_close((x @ sae.W_enc[:, 0]) * norm, x.norm(dim=-1))


@pytest.mark.parametrize("reason", ["alive", "fires now", "below the threshold", "not finite", "nothing lacking"])
def test_what_is_left_alone(reason):
    sae, x, dead = lacking_one_feature()
    acts, threshold = torch.zeros(N_TOKENS, D_SAE), torch.zeros(N_TOKENS)
    if reason == "alive":
        dead = torch.zeros_like(dead)
    if reason == "fires now":
        acts[7, :3] = 1.0
    if reason == "below the threshold":
        threshold = x.norm(dim=-1)
    if reason == "not finite":
        x = torch.full_like(x, torch.nan)
    if reason == "nothing lacking":
        x = torch.zeros_like(x)
    before = sae.W_dec.detach().clone()
    reseed(sae, dead, acts, x, threshold)
    assert torch.equal(sae.W_dec, before)


def test_with_fewer_tokens_than_dead_latents_some_stay():
    sae, x, dead = lacking_one_feature()
    threshold = x.norm(dim=-1)
    threshold[4] = 0
    reseed(sae, dead, torch.zeros(N_TOKENS, D_SAE), x, threshold)
    assert int((sae.W_dec[:3].norm(dim=-1) > 0).sum()) == 1


def test_tokens_are_drawn_by_their_squared_residual():
    torch.manual_seed(0)
    strong, weak = torch.eye(D_IN)[:2]
    residual = torch.stack([3 * strong, weak])
    drawn = 0
    for _ in range(400):
        sae, _, _ = lacking_one_feature()
        reseed(sae, torch.arange(D_SAE) == 0, torch.zeros(2, D_SAE), residual, torch.zeros(2))
        drawn += int(sae.W_dec[0] @ strong > 0.5)
    # 9 of 10 are expected: 360 with a standard deviation of 6.
    assert 330 <= drawn <= 390


@pytest.mark.parametrize(
    ("n", "every", "mode", "happens"),
    [(100, 100, True, True), (200, 100, True, True), (150, 100, True, False), (0, 100, True, False),
     (100, 0, True, False), (100, 100, False, False)],
)  # fmt: skip
def test_a_step_reseeds_when_it_is_due(n, every, mode, happens):
    sae, x, dead = lacking_one_feature()
    sae.cfg.reseed_steps, sae.cfg.unit_norm_decoder = every, False
    sae.train(mode)
    out = step(sae, x, dead, n=n)
    assert bool(sae.W_dec[:3].any()) == happens
    if happens:  # and the latent is of use in the same step
        assert (out.feature_acts[:, :3] > 0).any(-1).all()
        out.loss.backward()
        assert sae.W_enc.grad[:, :3].any()


def test_without_a_mask_nothing_happens():
    sae, x, _ = lacking_one_feature()
    step(sae.train(), x, None, n=100)
    assert not sae.W_dec[:3].any()


def test_training_with_reseeding_leaves_no_latent_dead_where_there_are_features_enough(tmp_path):
    """Latents that all start as the same direction are spread over the features by it."""
    dead_in_the_end = {}
    for every in (0, 20):
        torch.manual_seed(1)
        cfg = AFAThresholdTrainingSAEConfig(
            d_in=D_IN, d_sae=D_SAE, reseed_steps=every, threshold_scale=0.7, threshold_start=1.0
        )
        sae = AFAThresholdTrainingSAE(cfg)
        sae.W_dec.data[1:] = sae.W_dec.data[0] + 0.01 * torch.randn(D_SAE - 1, D_IN)
        sae.W_enc.data = sae.W_dec.data.T.contiguous()
        optimizer = torch.optim.Adam(sae.parameters(), lr=3e-3)
        since_fired = torch.zeros(D_SAE)
        for n in range(300):
            sae.train()
            out = step(sae, tokens(256), since_fired > 10, n=n)
            out.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            since_fired = torch.where((out.feature_acts > 0).any(0), 0, since_fired + 1)
        dead_in_the_end[every] = int(
            (~(to_inference(sae, tmp_path / str(every)).encode(tokens(4000)) > 0).any(0)).sum()
        )
    assert dead_in_the_end[20] <= D_SAE // 10
    assert dead_in_the_end[0] >= 2 * dead_in_the_end[20] + 4
