"""SAEs on the activations of a language model, standardised token by token as in the AFA paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from sae_lens.saes.sae import TrainingSAE
from typing_extensions import override

from sae_lens_afa.evals.cross_entropy import CrossEntropy
from sae_lens_afa.experiments.arms import Arm, Run, check_arms
from sae_lens_afa.experiments.measures import afa_figures, inference_sae, reconstruction_figures, standardised
from sae_lens_afa.experiments.report import Plot
from sae_lens_afa.experiments.rows import check_seeds, measured_row, training_note
from sae_lens_afa.experiments.statistics import Criterion
from sae_lens_afa.experiments.sweep import Advance, Group, Sweep
from sae_lens_afa.experiments.text_source import HeldOut, TextSource, held_out, hook_widths, training_batches
from sae_lens_afa.experiments.training import Training, build, train_together
from sae_lens_afa.loading.models import check_device

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule

_KEY_FIGURES = (
    "l0", "mse", "explained_variance", "ce_with_sae", "ce_score", "dead_latents", "norm_ratio", "epsilon_lbo",
    "mdl_bits",
)  # fmt: skip
_CE_PROMPTS = 8
CE_PLOT = Plot("ce_with_sae", "cross-entropy with SAE (line: without)", reference="ce")


def without_normalisation(arms: Sequence[Arm]) -> tuple[Arm, ...]:
    """The arms for activations that are standardised before they reach the SAE."""
    return tuple(replace(arm, settings={"normalize_activations": "none", **arm.settings}) for arm in arms)


def sparse_limit(d_in: int) -> int:
    """L0 up to which a code counts as sparse in the second table of the best: a quarter of the dimensions."""
    return d_in // 4


@dataclass(frozen=True)
class LanguageModelSweep(Sweep):
    """SAEs at hooks of a language model; those of a group share one forward pass.

    All SAEs get activations that are standardised as SAELens' "layer_norm" does, which is the paper's space, and are
    judged in it. SAELens' TopK cannot be trained with "layer_norm" itself: it raises once a latent is dead.

    Attributes:
        title: Of the report.
        source: Model and text.
        hooks: Hook points by the names they have in tables.
        d_in, d_sae: Widths.
        arms, training, seeds: What is compared, and how.
        test_tokens: Held-out tokens on which the SAEs are judged.
        ce_tokens: Of these, those on which the model's cross-entropy is measured.
        saes_per_group: Most SAEs that are trained side by side; a kill loses what is in work.
        device: Of model and SAEs.
    """

    title: str
    source: TextSource
    hooks: Mapping[str, str]
    d_in: int
    d_sae: int
    arms: tuple[Arm, ...]
    training: Training
    seeds: tuple[int, ...]
    test_tokens: int
    ce_tokens: int
    saes_per_group: int
    device: str = "cpu"

    growing = ("hooks", "arms", "seeds", "saes_per_group")
    plots = (Plot("mse", "mean squared error, standardised"), CE_PLOT)
    key_figures = _KEY_FIGURES

    def __post_init__(self) -> None:
        check_arms(self.arms, self.d_in, self.d_sae)
        check_seeds(self.seeds)
        if not self.hooks:
            raise ValueError("hooks must name at least one hook point.")
        for name in ("test_tokens", "ce_tokens", "saes_per_group"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        check_device(self.device)

    @property
    @override
    def criteria(self) -> Sequence[Criterion]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return (
            Criterion("mse", "MSE", False),
            Criterion("mse", "MSE", False, max_l0=sparse_limit(self.d_in)),
            Criterion("ce_with_sae", "cross-entropy with the SAE", False, max_l0=sparse_limit(self.d_in)),
        )

    @override
    def settings(self) -> dict[str, Any]:
        names = ("d_in", "d_sae", "test_tokens", "ce_tokens", "saes_per_group")
        return {
            "sweep": "language-model",
            "source": asdict(self.source),
            "hooks": dict(self.hooks),
            **{name: getattr(self, name) for name in names},
            **self.compared(),
        }

    @override
    def groups(self) -> list[Group]:
        runs = [run for arm in self.arms for run in arm.runs()]
        members = [(layer, run) for run in runs for layer in self.hooks]
        size = self.saes_per_group
        parts = [members[i : i + size] for i in range(0, len(members), size)]
        return [Group(f"seed{seed}-part{i}", seed, part) for seed in self.seeds for i, part in enumerate(parts)]

    @override
    def run_group(self, group: Group, advance: Advance) -> list[dict[str, Any]]:
        model, train_text, test = loaded(self.source, tuple(self.hooks.values()), self.test_tokens, self.device)
        self._check_widths(model)
        saes = {_key(m): build(m[1], self.d_in, self.d_sae, group.seed, self.device) for m in group.members}
        hooks = {_key(member): self.hooks[member[0]] for member in group.members}
        batches = training_batches(self.source, model, train_text, saes, hooks, self.training, group.seed, self.device)
        trained = train_together(saes, hooks, batches, self.training, group.seed, self.device, advance)
        return [
            measured_row(
                layer, group.seed, run, trained[_key((layer, run))],
                lambda sae, hook=self.hooks[layer]: self._measure(sae, hook, model, test),
            )
            for layer, run in group.members
        ]  # fmt: skip

    def _check_widths(self, model: HookedRootModule) -> None:
        for hook, width in hook_widths(model, list(self.hooks.values())).items():
            if width != self.d_in:
                raise ValueError(f"d_in is {self.d_in}, but activations at {hook} are {width} wide: set d_in={width}.")

    def _measure(self, trained: TrainingSAE[Any], hook: str, model: HookedRootModule, test: HeldOut) -> dict[str, Any]:
        activations = standardised(test.activations[hook])
        sae = inference_sae(trained, device=self.device)
        figures = {**reconstruction_figures(sae, activations), **afa_figures(sae, activations)}
        return {**figures, **self._cross_entropy(trained, hook, model, test)}

    @torch.no_grad()
    def _cross_entropy(
        self, trained: TrainingSAE[Any], hook: str, model: HookedRootModule, test: HeldOut
    ) -> dict[str, Any]:
        sae = inference_sae(trained, standardise=True, device=self.device)
        losses = CrossEntropy(sae, model, hook, None, {})
        prompts = test.prompts[: -(-self.ce_tokens // self.source.context_size)]
        for part in prompts.split(_CE_PROMPTS):
            losses.add(part)
        figures = losses.metrics()
        return {
            "ce": figures["ce_loss_without_sae"],
            "ce_with_sae": figures["ce_loss_with_sae"],
            "ce_ablated": figures["ce_loss_with_ablation"],
            "ce_score": figures["ce_loss_score"],
        }

    @override
    def notes(self) -> list[str]:
        source = "the bundled model and text" if not self.source.dataset else f"`{self.source.dataset}`"
        return [
            f"Model `{self.source.model}`, {source}, context {self.source.context_size};"
            f" d_in {self.d_in}, d_sae {self.d_sae}; hooks " + ", ".join(f"`{hook}`" for hook in self.hooks.values()),
            training_note(self.training),
            "Activations are standardised token by token (SAELens' layer_norm); MSE is the mean over tokens and"
            " dimensions in that space, explained variance and AFA figures are in it too. Cross-entropy is in nats per"
            " token with the reconstruction in place, put back into the model's own scale.",
            f"A code with L0 > d_in = {self.d_in} is not sparse: a dense code is exact there, and the lowest MSE"
            " of a grid is that of its densest code. MDL counts the code alone, not what it leaves out.",
            "Seeds differ in first weights and in how tokens are mixed into batches, not in the text.",
        ]


@lru_cache(maxsize=1)
def loaded(source: TextSource, hooks: tuple[str, ...], tokens: int, device: str) -> tuple[Any, Any, HeldOut]:
    """Model, text to train on and held-out activations: the same for every group."""
    model = source.load_model(device)
    train_text, test_text = source.datasets()
    return model, train_text, held_out(source, model, test_text, hooks, tokens, device)


def _key(member: tuple[str, Run]) -> str:
    layer, run = member
    return f"{layer} {run.name}"
