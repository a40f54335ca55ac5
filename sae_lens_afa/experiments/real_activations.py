"""The comparison on real activations: of a file, or of the bundled model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from jaxtyping import Bool
from sae_lens.saes.sae import SAE
from torch import Tensor
from typing_extensions import override

from sae_lens_afa.experiments.arms import Arm
from sae_lens_afa.experiments.concepts import CONCEPTS, concept_f1, concept_labels
from sae_lens_afa.experiments.file_sweep import ActivationsSweep
from sae_lens_afa.experiments.held_out import HeldOut
from sae_lens_afa.experiments.model_sweep import CE_PLOT, LanguageModelSweep
from sae_lens_afa.experiments.presets import Several, changed, preset_arms
from sae_lens_afa.experiments.side_by_side import Training
from sae_lens_afa.experiments.sweep import Plot, Sweep
from sae_lens_afa.experiments.text_source import TextSource
from sae_lens_afa.loading.models import HOOKED, model_width

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule


@dataclass(frozen=True, kw_only=True)
class ModelActivationsSweep(LanguageModelSweep):
    """SAEs at a hook of a language model; explained variance and cross-entropy are drawn."""

    title: str = "SAEs on activations of a language model"

    plots: ClassVar[Sequence[Plot]] = (Plot("explained_variance", "1 - explained variance", complement=True), CE_PLOT)
    key_metrics: ClassVar[Sequence[str]] = (
        "l0_mean", "explained_variance", "ce_loss_with_sae", "ce_loss_score", "dead_latents", "shrinkage",
        "norm_ratio_median",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DemoActivationsSweep(ModelActivationsSweep):
    """SAEs on a layer of the bundled model; single concepts of its text are drawn, too."""

    title: str = "SAEs on activations of the bundled model"
    source: TextSource = field(default_factory=TextSource)
    hooks: dict[str, str] = field(default_factory=lambda: {"layer 2": "blocks.2.hook_resid_pre"})
    d_in: int = 192
    d_sae: int = 768

    plots = (*ModelActivationsSweep.plots, Plot("concept_f1", "1 - F1 of concepts", complement=True))
    key_metrics = (*ModelActivationsSweep.key_metrics, "concept_f1")

    @override
    def _of_tokens(self, sae: SAE[Any], activations: Tensor, model: HookedRootModule, test: HeldOut) -> dict[str, Any]:
        of_concepts = concept_f1(sae, activations, _labels(model, test))
        mean = {"concept_f1": fmean(of_concepts.values())} if of_concepts else {}
        return {**super()._of_tokens(sae, activations, model, test), **mean, "concepts": of_concepts}

    @override
    def notes(self) -> list[str]:
        return [
            *super().notes(),
            f"F1 of concepts: {', '.join(CONCEPTS)}. For each the latent and level that detect it best on half of the"
            " held-out tokens, judged on the other half; the mean over them.",
        ]


def _labels(model: HookedRootModule, test: HeldOut) -> Bool[Tensor, "concepts tokens"]:
    tokenizer: Any = model.tokenizer
    return concept_labels(test.prompts, tokenizer.decode)


PRESETS = {
    "quick": DemoActivationsSweep(
        arms=preset_arms("activations", "quick", phase=120, steps=300),
        training=Training(
            steps=300, batch_size=256, lr=1e-3, dead_feature_window=20, lr_warm_up_steps=15, lr_decay_steps=60
        ),
        seeds=(0, 1, 2),
        test_tokens=16_384,
        ce_tokens=4096,
    ),
    "full": DemoActivationsSweep(
        arms=preset_arms("activations", "full", phase=480, steps=1200),
        training=Training(
            steps=1200, batch_size=512, lr=1e-3, dead_feature_window=60, lr_warm_up_steps=60, lr_decay_steps=300
        ),
        seeds=(0, 1, 2),
        test_tokens=32_768,
        ce_tokens=16_384,
    ),
    "tiny": DemoActivationsSweep(
        arms=(Arm("topk", "k", (4,)), Arm("mutual_choice", "k", (4,))),
        training=Training(steps=6, batch_size=64, lr=1e-3, dead_feature_window=2),
        seeds=(0, 1),
        source=TextSource(context_size=32),
        test_tokens=256,
        ce_tokens=64,
    ),
}


def activations_sweep(
    activations: str | Path | None = None,
    test: str | Path | None = None,
    *,
    preset: str = "quick",
    d_sae: int | None = None,
    arms: Sequence[Arm] = (),
    seeds: Sequence[int] = (),
    steps: Several[int] = None,
    lr: Several[float] = None,
    batch_size: int | None = None,
    raw: bool = False,
    model: str | None = None,
    model_class_name: str | None = None,
    dataset: str | None = None,
    hook: str | None = None,
    d_in: int | None = None,
    device: str = "cpu",
) -> Sweep:
    """Return a sweep over the activations of a file or of a language model: the bundled one where neither is given.

    Args:
        activations, test: .safetensors files of one tensor [tokens, d_in] each: to train on, to judge on. They are
            read when the sweep is run; examples/activations_of_a_model.py writes such files.
        preset: "quick" (minutes on two cores), "full" (hours), "tiny" (seconds: says nothing about SAEs).
        d_sae: Latents; four times d_in if None.
        arms, seeds: In place of the preset's, where given.
        steps: Training steps in place of the preset's, one number or several: each run is made with each. All that
            the preset counts in steps changes in proportion.
        lr: Learning rate in place of the preset's, one or several: each run is made with each.
        batch_size: Tokens of each step in place of the preset's.
        raw: Of a file: not standardised, see `ActivationsSweep`.
        model: A model in the place of the bundled one, as for `load_language_model`; special tokens are left out, and
            the mean token is taken off all others before they are standardised.
        model_class_name: SAELens' `model_class_name`, "HookedTransformer" if None: "AutoModelForCausalLM" reads a
            folder of any architecture.
        dataset: The model's text, as for `load_text_dataset`; its first 1,000 documents are judged on.
        hook: The model's hook point.
        d_in: Width of the hook; the model's own width if None.
        device: Of model and SAEs.

    Raises:
        ValueError: a preset, architecture or setting that will not do; nothing has been trained then.

    Example:
        >>> from sae_lens_afa.experiments import Arm, activations_sweep
        >>> arms = [Arm.parse("topk:k=8,16"), Arm.parse("afa_threshold:threshold_scale=0.85")]
        >>> sweep = activations_sweep("train.safetensors", "test.safetensors", arms=arms, seeds=[0])
        >>> [run.name for run in sweep.runs()]
        ['topk k=8', 'topk k=16', 'afa_threshold threshold_scale=0.85']
        >>> activations_sweep(preset="full").title
        'SAEs on activations of the bundled model'
    """
    changes: dict[str, Any] = {"d_sae": d_sae, "arms": tuple(arms), "seeds": tuple(seeds), "device": device}
    needed = {"model": model, "dataset": dataset, "hook": hook}
    of_model = {**needed, "model_class_name": model_class_name, "d_in": d_in}
    given = [name for name, value in of_model.items() if value is not None]
    if activations is None and test is None:
        if raw:
            raise ValueError("raw is for the activations of a file: give activations and test with it.")
        if given and (missing := [name for name in needed if name not in given]):
            raise ValueError(
                f"{' and '.join(missing)} missing: a sweep of another model needs model, dataset and hook."
            )
        presets = PRESETS
        if model is not None and dataset is not None and hook is not None:
            source = TextSource(model, dataset, model_class_name=model_class_name or HOOKED, centred=True)
            presets = _of_model(source, hook, d_in)
        return changed(presets, preset, steps, lr, batch_size, **changes)
    if activations is None or test is None:
        raise ValueError("give activations and test, or neither of them for a model.")
    if given:
        raise ValueError(f"{given[0]} is for the activations of a model: leave it out, or activations and test.")
    files = {
        name: ActivationsSweep(
            train_file=Path(activations), test_file=Path(test), arms=sweep.arms, training=sweep.training,
            seeds=sweep.seeds,
        )
        for name, sweep in PRESETS.items()
    }  # fmt: skip
    return changed(files, preset, steps, lr, batch_size, raw=raw, **changes)


def _of_model(source: TextSource, hook: str, d_in: int | None) -> dict[str, ModelActivationsSweep]:
    """Return the presets on another model and text.

    Raises:
        ValueError, OSError: the width of the model is not known.
    """
    width = model_width(source.model, source.model_class_name) if d_in is None else d_in
    return {
        name: ModelActivationsSweep(
            source=replace(source, context_size=sweep.source.context_size),
            hooks={hook: hook}, d_in=width, d_sae=4 * width, arms=sweep.arms, training=sweep.training,
            seeds=sweep.seeds, test_tokens=sweep.test_tokens, ce_tokens=sweep.ce_tokens,
        )
        for name, sweep in PRESETS.items()
    }  # fmt: skip
