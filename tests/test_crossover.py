"""Lists or matmuls: what decides, that it is measured once, and that a measurement is what it says."""

from __future__ import annotations

import json

import pytest
import torch

from sae_lens_afa import crossover


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """No size is too small, and nothing has been measured on this machine."""
    monkeypatch.delenv("SAE_LENS_AFA_BACKEND", raising=False)
    monkeypatch.setenv("SAE_LENS_AFA_CACHE", str(tmp_path))
    monkeypatch.setattr(crossover, "MIN_SIZE", 0)
    crossover._densities.cache_clear()
    yield tmp_path
    crossover._densities.cache_clear()


@pytest.fixture
def measured(monkeypatch):
    """What is measured, and how often."""
    calls = []

    def measure():
        calls.append(1)
        return {"decode": 0.12, "step": 0.34}

    monkeypatch.setattr(crossover, "measure", measure)
    return calls


def codes(density: float = 0.1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(30, 50, generator=generator) * (torch.rand(30, 50, generator=generator) < density)


@pytest.mark.parametrize(
    "change",
    [
        lambda acts, patch: acts.bfloat16(),
        lambda acts, patch: acts.to("meta"),
        lambda acts, patch: patch.setattr(crossover, "MIN_SIZE", acts.numel() + 1) or acts,
        lambda acts, patch: patch.setattr(crossover, "max_density", lambda work: 0.05) or acts,
        lambda acts, patch: patch.setenv("SAE_LENS_AFA_BACKEND", "torch") or acts,
    ],
    ids=["type", "device", "small", "dense", "environment"],
)
@pytest.mark.usefixtures("fresh", "measured")
def test_nothing_is_listed_where_it_does_not_pay_or_cannot_be(change, monkeypatch):
    acts = codes()
    assert crossover.listed_where_faster(acts, "step") is not None
    assert crossover.listed_where_faster(change(acts, monkeypatch), "step") is None


def test_each_kind_of_work_has_its_own_density(fresh, measured):
    assert [crossover.max_density(work) for work in ("decode", "step")] == [0.12, 0.34]
    acts = codes(0.2)
    assert crossover.listed_where_faster(acts, "decode") is None
    assert crossover.listed_where_faster(acts, "step") is not None


def test_it_is_measured_once_and_kept(fresh, measured):
    for _ in range(2):
        assert crossover.max_density("step") == 0.34
    assert len(measured) == 1
    (file,) = fresh.iterdir()
    assert json.loads(file.read_text()) == {"decode": 0.12, "step": 0.34}
    file.write_text(json.dumps({"decode": 0.2, "step": 0.4}))
    crossover._densities.cache_clear()  # as in another process
    assert crossover.max_density("step") == 0.4
    assert len(measured) == 1


def test_of_two_processes_that_measure_at_once_both_take_what_the_first_has_found(fresh, monkeypatch):
    def measure():
        (fresh / f"crossover-{crossover._machine(torch.get_num_threads())}.json").write_text(
            '{"decode": 0.2, "step": 0.4}'
        )
        return {"decode": 0.12, "step": 0.34}

    monkeypatch.setattr(crossover, "measure", measure)
    assert crossover.max_density("step") == 0.4


def test_another_processor_or_number_of_threads_is_measured_anew(fresh, measured, monkeypatch):
    crossover.max_density("step")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    crossover.max_density("step")
    crossover._densities.cache_clear()
    monkeypatch.setattr(crossover, "processor", lambda: "another one")
    crossover.max_density("step")
    assert len(measured) == 3
    assert len(list(fresh.iterdir())) == 3


@pytest.mark.parametrize("damaged", ["", "{", "[1]", '{"decode": 0.1}', '{"decode": 0.1, "step": "x"}'])
def test_a_damaged_file_is_replaced(fresh, measured, damaged):
    crossover.max_density("step")
    (file,) = fresh.iterdir()
    file.write_text(damaged)
    crossover._densities.cache_clear()
    assert crossover.max_density("step") == 0.34
    assert json.loads(file.read_text())["step"] == 0.34


def test_where_nothing_can_be_kept_it_works_all_the_same(fresh, measured, monkeypatch):
    (fresh / "file").write_text("")
    monkeypatch.setenv("SAE_LENS_AFA_CACHE", str(fresh / "file"))
    assert crossover.max_density("step") == 0.34


@pytest.mark.parametrize(
    ("dense", "per_density", "expected"),
    [
        (1.0, 5.0, 0.18),  # a line through the origin meets the matmul at 1 / 5; a tenth less, for caution
        (1.0, 50.0, 0.02),  # where the list never wins, nearly nothing is listed
        (1.0, 0.5, 0.5),  # where it always wins, what was not timed is left to the matmul
    ],
)
def test_the_density_is_where_both_take_as_long(monkeypatch, dense, per_density, expected):
    monkeypatch.setattr(crossover, "_TOKENS", 40)
    monkeypatch.setattr(crossover, "_D_IN", 8)

    def time(work, *args):
        if len(args) == 1:
            return dense
        return per_density * min(
            crossover._DENSITIES, key=lambda density: abs(density - float((args[0] != 0).float().mean()))
        )

    monkeypatch.setattr(crossover, "_time", time)
    found = crossover.measure()
    assert found == pytest.approx({"decode": expected, "step": expected}, abs=1e-3)


def test_a_real_measurement_is_within_its_bounds(monkeypatch):
    for name, size in (("_TOKENS", 64), ("_D_IN", 32), ("_D_SAE", 128)):
        monkeypatch.setattr(crossover, name, size)
    found = crossover.measure()
    assert list(found) == ["decode", "step"]
    assert all(crossover._LEAST <= density <= crossover._MOST for density in found.values())
