"""The back ends of the selection: adversarial rows on each, which one "auto" takes, and running side by side."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import assert_same_selection
from torch import Tensor

import sae_lens_afa
from sae_lens_afa.kernels.select import select_compiled
from sae_lens_afa.selection import _backends, available_backends, norm_matching_topk

BACKENDS = available_backends()
# Triton's kernels run in its interpreter where there is no GPU; test_selection looks at them in any case.
SLOW_IF_INTERPRETED = [pytest.param(b, marks=pytest.mark.slow) if b == "triton" else b for b in BACKENDS]


def select(backend: str, *inputs: Tensor | None) -> Tensor:
    """Select on the back end's device, and bring the result back."""
    device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
    return norm_matching_topk(*(None if t is None else t.to(device) for t in inputs), backend=backend).cpu()


def adversarial_rows(n: int = 3000) -> dict[str, Tensor]:
    """Rows that a search by value finds hard: one value, two, far apart, at the ends of float32, in order."""
    random = torch.Generator().manual_seed(5)
    normal = torch.randn(n, generator=random)
    return {
        "all equal": torch.full((n,), 0.3),
        "two values": torch.where(normal > 0.2, 1.5, 0.25),
        "two values far apart": torch.where(normal > 1.5, 1e3, 1e-3),
        "neighbouring floats": torch.nextafter(torch.ones(n), torch.where(normal > 0, 2.0, 0.0)),
        "one large": torch.cat([torch.full((n - 1,), 1e-4), torch.tensor([50.0])]),
        "heavy tail": normal.abs() * 10.0 ** (-9 * torch.rand(n, generator=random)),
        "geometric": 0.99 ** torch.arange(n),
        "denormal": normal * 1e-39,
        "denormal squares": normal * 1e-20,
        "tiny beside one": torch.cat([normal[1:] * 1e-30, torch.ones(1)]),
        "huge": normal * 1e37,
        "ascending": torch.arange(n).float(),
        "descending": torch.arange(n).flip(0).float(),
        "periodic": torch.sin(torch.arange(n) * 2 * torch.pi * 64 / n),  # in step with a sample of 64
        "few positive": torch.where(torch.arange(n) % 977 == 5, 1.0, -normal.abs()),
        "none positive": -normal.abs(),
        "zero": torch.zeros(n),
        "one bfloat16 grid": normal.bfloat16().float(),
    }


@pytest.mark.parametrize("backend", SLOW_IF_INTERPRETED)
@pytest.mark.parametrize("name", adversarial_rows())
def test_adversarial_rows(name, backend):
    row = adversarial_rows(600 if backend == "triton" else 3000)[name]  # Triton may be interpreted
    length = row.relu().double().norm()
    shares = torch.tensor([0.0, 1e-6, 0.1, 0.5, 0.9, 0.999, 1 - 1e-9, 1.0, 1 + 1e-9, 2.0], dtype=torch.float64)
    rows, targets = row.expand(len(shares), -1), shares * length
    assert_same_selection(select(backend, rows, targets), rows, targets)


@pytest.mark.parametrize("backend", BACKENDS)
def test_targets_at_and_around_the_midpoint_of_two_candidates(backend):
    row = torch.randn(500)
    norms = row.relu().double().square().sort(descending=True).values.cumsum(0).sqrt()
    middle = (norms[99] + norms[100]) / 2
    targets = middle + (norms[100] - norms[99]) * torch.tensor([-1e-3, -1e-6, 0.0, 1e-6, 1e-3], dtype=torch.float64)
    rows = row.expand(5, -1)
    out = select(backend, rows, targets)
    assert_same_selection(out, rows, targets)
    assert (out > 0).sum(-1)[[0, 1, 3, 4]].tolist() == [100, 100, 101, 101]


@pytest.mark.parametrize("backend", SLOW_IF_INTERPRETED)
def test_a_long_heavy_tail_is_kept_to_its_end(backend):
    # n = 65536: float32 sums stall here and drop hundreds of features.
    rows = (torch.rand(3, 65536) ** 8 + 1e-4) * torch.tensor([1.0, 1e-3, 1e3])[:, None]
    targets = rows.double().norm(dim=-1) * torch.tensor([0.5, 0.999999, 1.0000001])
    assert_same_selection(select(backend, rows, targets), rows, targets)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=30)
@given(st.data())
def test_values_of_a_small_grid_tie_everywhere(backend, data):
    n = data.draw(st.integers(1, 400))
    values = data.draw(st.lists(st.integers(-3, 12), min_size=n, max_size=n))
    row = torch.tensor(values).bfloat16() / 4
    target = torch.tensor(data.draw(st.floats(0, 1.1)) * float(row.relu().double().norm()), dtype=torch.float64)
    assert_same_selection(select(backend, row, target), row, target)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_any_memory_layout_and_type(backend, dtype):
    acts = torch.randn(40, 2, dtype=torch.float32).to(dtype).T
    wide = torch.randn(2, 80).to(dtype)[:, ::2]
    for a in (acts, wide, acts.expand(2, 2, 40)):
        target = a.double().relu().norm(dim=-1) * 0.6
        out = select(backend, a, target, torch.rand(80)[::2])
        again = select(backend, a.contiguous(), target, None)
        assert out.is_contiguous()
        assert out.dtype == dtype
        assert_same_selection(again.float(), a.float(), target)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1e-300, 1e-60, 1e-42, 1e60, 1e150])
def test_float64_rows_beyond_float32(backend, scale):
    acts = torch.tensor([[3.0, 4.0, 1.0, -2.0], [-1.0, 0.0, 0.0, -1.0]], dtype=torch.float64) * scale
    out = select(backend, acts, torch.tensor([4.9, 1.0], dtype=torch.float64) * scale)
    assert torch.equal(out, acts * torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]]))


def test_ordinary_rows_are_all_decided_by_the_kernel():
    acts = torch.randn(64, 4096)
    target = acts.relu().double().norm(dim=-1) * torch.linspace(0.01, 1.2, 64)
    assert select_compiled(acts, target, None)[1] == []


def test_results_do_not_depend_on_the_number_of_threads():
    acts = torch.randn(600, 2048)
    target = acts.relu().norm(dim=-1) * 0.7
    threads = torch.get_num_threads()
    found = []
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            found.append(norm_matching_topk(acts, target))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_many_callers_at_once():
    acts = torch.randn(8, 200, 1024)
    target = acts.relu().norm(dim=-1) * 0.7
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(norm_matching_topk, acts, target))
    assert torch.equal(torch.stack(found), norm_matching_topk(acts, target))


class _Selected(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        acts = torch.randn(300, 2048, generator=torch.Generator().manual_seed(index))
        return norm_matching_topk(acts, acts.relu().norm(dim=-1) * 0.5)


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_workers_forked_after_use_select_too():
    dataset = _Selected()
    expected = [dataset[i] for i in range(4)]
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert all(torch.equal(a, b) for a, b in zip(expected, loader, strict=True))


# ---- which back end


def test_auto_takes_the_compiled_one_on_cpu():
    assert available_backends()[-1] == "torch"
    assert _backends.backend_for(torch.device("cpu")) == "numba"
    assert _backends.backend_for(torch.device("mps")) == "torch"


def test_the_environment_says_what_auto_means(monkeypatch):
    monkeypatch.setenv("SAE_LENS_AFA_BACKEND", "torch")
    assert _backends.backend_for(torch.device("cpu")) == "torch"
    assert _backends.backend_for(torch.device("cpu"), "numba") == "numba"
    monkeypatch.setenv("SAE_LENS_AFA_BACKEND", "abacus")
    with pytest.raises(ValueError, match=r"SAE_LENS_AFA_BACKEND must be 'auto' or one of \[.*'torch'\], got 'abacus'"):
        norm_matching_topk(torch.ones(2, 3), torch.ones(2))


def test_a_backend_for_another_device_is_refused():
    with pytest.raises(ValueError, match="backend='numba' runs on cpu, but acts are on mps"):
        _backends.backend_for(torch.device("mps"), "numba")


@pytest.mark.slow
def test_compilers_are_imported_on_use_and_torch_stands_in_for_numba(client):
    # SAELens' own dependencies may import triton; tests/import_orders.py looks at what this package adds to them.
    script = """
import sys
from sae_lens_afa.selection import available_backends, norm_matching_topk
print([name for name in sys.modules if name.startswith(("numba", "sae_lens_afa.kernels"))])
sys.modules["numba"] = None
assert "numba" not in available_backends(), available_backends()
assert norm_matching_topk(torch.tensor([3.0, 4.0, 0.5]), torch.tensor(4.9)).tolist() == [3, 4, 0]
try:
    norm_matching_topk(torch.ones(1), torch.tensor(1.0), backend="numba")
except ValueError as error:
    print(error)
"""
    nothing_imported, refused = client.run(script).output.splitlines()
    assert nothing_imported == "[]"
    assert refused.startswith("backend must be 'auto' or one of [")
    assert "'torch'], got 'numba'" in refused


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a folder that nothing can be created in: /proc")
def test_kernels_compile_where_nothing_can_be_cached(tmp_path):
    # The package's folder gets a file where the cache would be, the user's cache is a folder nobody can write to.
    package = Path(sae_lens_afa.__file__).parent
    shutil.copytree(package, tmp_path / "sae_lens_afa", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "sae_lens_afa" / "kernels" / "__pycache__").touch()
    script = """
import torch
from sae_lens_afa.selection import norm_matching_topk
print(norm_matching_topk(torch.tensor([3.0, 4.0, 0.5]), torch.tensor(4.9), backend="numba").tolist())
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "HOME": "/proc/none", "XDG_CACHE_HOME": "/proc/none"}
    run = subprocess.run(
        [sys.executable, "-B", "-c", script], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert run.stdout.strip() == "[3.0, 4.0, 0.0]", run.stderr
