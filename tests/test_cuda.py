"""On a GPU, where there is one: every architecture trains there, and encodes as on the CPU."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "saes"))

from small_saes import KINDS, TRAINING, build, step

from sae_lens_afa.functional import universal_ratio
from sae_lens_afa.selection import PursuitRule, available_backends, pursue

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
D_IN, D_SAE = 64, 256


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_it_encodes_as_on_the_cpu(kind, dtype):
    sae = build(kind, d_in=D_IN, d_sae=D_SAE, dtype=dtype).eval()
    there = copy.deepcopy(sae).to("cuda")
    x = torch.randn(200, D_IN, dtype=sae.dtype)
    with torch.no_grad():
        expected, found = sae.encode(x), there.encode(x.cuda()).cpu()
    # Another order of summation turns decisions that are near: seldom, but in bfloat16 for one token in twenty.
    same = ((found > 0) == (expected > 0)).all(-1)
    assert same.double().mean() > (0.8 if dtype == "bfloat16" else 0.97)
    tolerance = {"float64": 1e-9, "float32": 2e-3, "bfloat16": 0.1}[dtype]
    torch.testing.assert_close(found[same], expected[same], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", TRAINING)
@pytest.mark.parametrize("autocast", [False, True])
def test_it_trains(name, autocast):
    sae = build(name, d_in=D_IN, d_sae=D_SAE).to("cuda").train()
    sae.cfg.device = "cuda"
    truth = torch.nn.functional.normalize(torch.randn(D_SAE, D_IN, device="cuda"), dim=-1)
    optimizer, losses = torch.optim.Adam(sae.parameters(), lr=3e-3), []
    for n in range(60):
        codes = (torch.rand(512, D_SAE, device="cuda") < 3 / D_SAE) * (1 + torch.rand(512, D_SAE, device="cuda"))
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            out = step(sae, codes @ truth, n=n)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(out.losses["mse_loss"].item())
        assert all(torch.isfinite(p).all() for p in sae.parameters())
    assert sum(losses[-10:]) < sum(losses[:10])


@pytest.mark.parametrize("backend", [name for name in available_backends() if name != "numba"])
@pytest.mark.parametrize(("d_in", "d_sae", "scale"), [(64, 512, 0.6), (768, 4096, 0.5), (192, 768, 1.0)])
def test_a_pursuit_there_is_the_one_in_double_precision(backend, d_in, d_sae, scale):
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=generator, dtype=torch.float64), dim=-1)
    codes = (torch.rand(300, d_sae, generator=generator) < 12 / d_sae) * (1 + torch.rand(300, d_sae))
    x = codes.double() @ W_dec + 0.02 * torch.randn(300, d_in, generator=generator, dtype=torch.float64)
    rule, typical = PursuitRule(universal_ratio(d_in, d_sae, scale), 0.1, 0.7, 32), x.norm(dim=-1).mean()
    exact = pursue(x, W_dec, x @ W_dec.T, rule, typical, backend="torch")
    x32, W32 = x.float().cuda(), W_dec.float().cuda()
    found = pursue(x32, W32, x32 @ W32.T, rule, typical.float().cuda(), backend=backend).cpu().double()
    same = ((found > 0) == (exact > 0)).all(-1)
    assert same.double().mean() > 0.97  # as in test_pursuit: what is near its threshold may fall on either side
    torch.testing.assert_close(found[same], exact[same], rtol=1e-3, atol=1e-3)
    assert (exact > 0).sum(-1).double().mean() > 4
