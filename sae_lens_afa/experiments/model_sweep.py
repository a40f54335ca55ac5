"""SAEs on the activations of a language model, standardised token by token as in the AFA paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from sae_lens.saes.sae import SAE, TrainingSAE
from torch import Tensor
from typing_extensions import override

from sae_lens_afa.evals.cross_entropy import CrossEntropy
from sae_lens_afa.experiments.arms import Run, check_runs, without_normalisation
from sae_lens_afa.experiments.held_out import HeldOut, held_out, hook_widths
from sae_lens_afa.experiments.measures import inference_sae, measure
from sae_lens_afa.experiments.rows import measured_row, training_note
from sae_lens_afa.experiments.side_by_side import build, train_together
from sae_lens_afa.experiments.statistics import Criterion
from sae_lens_afa.experiments.sweep import Advance, Plot, RunGroup, Sweep, by_steps
from sae_lens_afa.experiments.text_source import TextSource, training_batches

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule

_CE_PROMPTS = 8
_CENTRED = (
    "Special tokens are left out: no SAE is trained or judged on them, and the model keeps them as they are. The mean"
    " token of the start of the text is taken off all others, and put back for the cross-entropy."
)
CE_PLOT = Plot("ce_loss_with_sae", "cross-entropy with SAE (line: without)", reference="ce_loss_without_sae")


def sparse_limit(d_in: int) -> int:
    """Return the L0 up to which a report counts a code as sparse: a quarter of the dimensions."""
    return d_in // 4


@dataclass(frozen=True, kw_only=True)
class LanguageModelSweep(Sweep):
    """SAEs at hooks of a language model; those of a group share one forward pass.

    All SAEs get activations that are standardised as SAELens' "layer_norm" does, which is the paper's space, and are
    judged in it. SAELens' TopK cannot be trained with "layer_norm" itself: it raises once a latent is dead.

    Attributes:
        source: Model and text.
        hooks: Hook points by the names they have in tables.
        d_in, d_sae: Widths.
        test_tokens: Held-out tokens on which the SAEs are judged.
        ce_tokens: Of these, those on which the model's cross-entropy is measured.
        saes_per_group: Most SAEs that are trained side by side, all of a seed if None; a kill loses what is in work.
    """

    source: TextSource
    hooks: Mapping[str, str]
    d_in: int
    d_sae: int
    test_tokens: int
    ce_tokens: int
    saes_per_group: int | None = None

    growing = ("hooks", *Sweep.growing, "saes_per_group")
    plots = (Plot("mse", "mean squared error, standardised"), CE_PLOT)
    key_metrics = (
        "l0_mean", "explained_variance", "mse", "ce_loss_with_sae", "ce_loss_score", "dead_latents",
        "norm_ratio_median",
    )  # fmt: skip

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        check_runs(self.runs(), self.d_in, self.d_sae)
        if not self.hooks:
            raise ValueError("hooks must name at least one hook point.")
        for name in ("test_tokens", "ce_tokens", "saes_per_group"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")

    @override
    def runs(self) -> list[Run]:
        return without_normalisation(super().runs())

    @override
    def criteria(self) -> Sequence[Criterion]:
        limit = sparse_limit(self.d_in)
        return (
            Criterion("mse", "MSE", False),
            Criterion("mse", "MSE", False, max_l0=limit),
            Criterion("ce_loss_with_sae", "cross-entropy with the SAE", False, max_l0=limit),
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
    def groups(self) -> list[RunGroup]:
        groups: list[RunGroup] = []
        for steps, runs in by_steps(self.runs()):
            members = [(layer, run) for run in runs for layer in self.hooks]
            size = self.saes_per_group or len(members)
            parts = [members[i : i + size] for i in range(0, len(members), size)]
            groups += [
                RunGroup(f"seed{seed}-{steps}-steps-part{i}", seed, part)
                for seed in self.seeds
                for i, part in enumerate(parts)
            ]
        return groups

    @override
    def run_group(self, group: RunGroup, advance: Advance) -> list[dict[str, Any]]:
        model, train_text, test = loaded(self.source, tuple(self.hooks.values()), self.test_tokens, self.device)
        self._check_widths(model)
        saes = {_key(m): build(m[1], self.d_in, self.d_sae, group.seed, self.device) for m in group.members}
        hooks = {_key(member): self.hooks[member[0]] for member in group.members}
        runs, training = {_key(member): member[1] for member in group.members}, self.training_of(group)
        batches = training_batches(
            self.source, model, train_text, saes, hooks, test.spaces, training, group.seed, self.device
        )
        trained = train_together(saes, hooks, batches, training, group.seed, self.device, advance, runs)
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
        sae, activations = inference_sae(trained, device=self.device), test.standardised(hook)
        return {
            **self._of_tokens(sae, activations, model, test),
            **self._cross_entropy(trained, hook, model, test),
        }

    def _of_tokens(self, sae: SAE[Any], activations: Tensor, model: HookedRootModule, test: HeldOut) -> dict[str, Any]:
        """Return the metrics of an SAE on the held-out activations [tokens, d_in], standardised."""
        del model, test  # for sweeps that know more of the text
        return dict(measure(sae, activations))

    @torch.no_grad()
    def _cross_entropy(
        self, trained: TrainingSAE[Any], hook: str, model: HookedRootModule, test: HeldOut
    ) -> dict[str, float | None]:
        sae = inference_sae(trained, standardise=True, device=self.device)
        losses = CrossEntropy(sae, model, hook, test.spaces[hook], {}, self.source.left_out(model))
        prompts = test.prompts[: -(-self.ce_tokens // self.source.context_size)]
        for part in prompts.split(_CE_PROMPTS):
            losses.add(part)
        return losses.metrics()

    @override
    def notes(self) -> list[str]:
        source = "the bundled model and text" if not self.source.dataset else f"`{self.source.dataset}`"
        return [
            f"Model `{self.source.model}`, {source}, context {self.source.context_size};"
            f" d_in {self.d_in}, d_sae {self.d_sae}; hooks " + ", ".join(f"`{hook}`" for hook in self.hooks.values()),
            training_note(self.training, self.budgets, self.rates),
            *([_CENTRED] if self.source.centred else []),
            "Activations are standardised token by token (SAELens' layer_norm); MSE is the mean over tokens and"
            " dimensions in that space, explained variance and AFA metrics are in it too. Cross-entropy is in nats per"
            " token with the reconstruction in place, put back into the model's own scale.",
            f"A code with L0 > d_in = {self.d_in} is not sparse: a dense code is exact there, and the lowest MSE"
            " of a grid is that of its densest code. MDL counts the code alone, not what it leaves out.",
            "Seeds differ in first weights and in how tokens are mixed into batches, not in the text.",
        ]


@lru_cache(maxsize=1)
def loaded(source: TextSource, hooks: tuple[str, ...], tokens: int, device: str) -> tuple[Any, Any, HeldOut]:
    """Return model, text to train on and held-out activations: the same for every group."""
    model = source.load_model(device)
    texts = source.datasets()
    return model, texts[0], held_out(source, model, texts, hooks, tokens, device)


def _key(member: tuple[str, Run]) -> str:
    layer, run = member
    return f"{layer} {run.key}"
