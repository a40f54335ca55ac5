"""Synthetic data with known features, by fixed names; on `sae_lens.synthetic`, which is imported when one is made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

if TYPE_CHECKING:
    from sae_lens.synthetic import SyntheticModel, SyntheticModelConfig

# Of the features and their frequencies: the same world for every run.
WORLD_SEED = 0
_SYNTH_BENCH_SEED = 42


@dataclass(frozen=True)
class World:
    """Features, how often they fire and with what others.

    Attributes:
        about: Its peculiarity, in a few words.
        hidden_dim: d_in.
        num_features: Features.
        num_latents: Of the SAEs; as many as features if None.
        max_prob, min_prob, exponent: Firing probabilities by a Zipf law, scaled to this range.
        orthogonalization_steps: Of SAELens' optimiser that makes the features quasi-orthogonal.
        correlation: Rank and scale of the correlations between the features' firing.
        hierarchy: Roots, children per parent and depth: a child fires only where its parent does.
    """

    about: str
    hidden_dim: int
    num_features: int
    max_prob: float = 0.4
    min_prob: float = 0.001
    exponent: float = 1.0
    orthogonalization_steps: int = 200
    correlation: tuple[int, float] | None = None
    hierarchy: tuple[int, int, int] | None = None
    num_latents: int | None = None

    kept: ClassVar[bool] = False
    """Whether it takes so long to make that it is kept on disk."""

    @property
    def latents(self) -> int:
        """Latents of the SAEs that are trained on it."""
        return self.num_features if self.num_latents is None else self.num_latents

    def config(self) -> SyntheticModelConfig:
        """Return the configuration for SAELens."""
        from sae_lens.synthetic import (
            HierarchyConfig,
            LowRankCorrelationConfig,
            OrthogonalizationConfig,
            SyntheticModelConfig,
            ZipfianFiringProbabilityConfig,
        )

        options: dict[str, Any] = {}
        if self.correlation is not None:
            rank, scale = self.correlation
            options["correlation"] = LowRankCorrelationConfig(rank=rank, correlation_scale=scale)
        if self.hierarchy is not None:
            roots, branching, depth = self.hierarchy
            options["hierarchy"] = HierarchyConfig(
                total_root_nodes=roots, branching_factor=branching, max_depth=depth, compensate_probabilities=True
            )
        return SyntheticModelConfig(
            num_features=self.num_features,
            hidden_dim=self.hidden_dim,
            firing_probability=ZipfianFiringProbabilityConfig(self.exponent, self.max_prob, self.min_prob),
            orthogonalization=OrthogonalizationConfig(num_steps=self.orthogonalization_steps),
            std_firing_magnitudes=0.2,
            bias=False,
            seed=WORLD_SEED,
            **options,
        )

    def make(self, device: str = "cpu") -> SyntheticModel:
        """Return the generator, on the CPU; `device` makes the features quasi-orthogonal, the same up to rounding."""
        from sae_lens.synthetic import FeatureDictionary, SyntheticModel, orthogonal_initializer

        config = self.config()
        if device == "cpu" or config.orthogonalization is None:
            return SyntheticModel(config)
        steps = config.orthogonalization
        initialize = orthogonal_initializer(steps.num_steps, steps.lr, chunk_size=steps.chunk_size, show_progress=True)

        def there(features: FeatureDictionary) -> None:
            initialize(features.to(device))
            features.to("cpu")

        features = FeatureDictionary(
            config.num_features, config.hidden_dim, config.bias, initializer=there, seed=config.seed
        )
        return SyntheticModel(config, feature_dict=features)


@dataclass(frozen=True)
class UnequalWorld(World):
    """A world whose features are of unequal strength.

    Attributes:
        strengths: A feature's mean magnitude is |N(0, s^2)|, at least m, for these (s, m).
    """

    strengths: tuple[float, float] = (1.25, 0.25)

    @override
    def config(self) -> SyntheticModelConfig:
        from sae_lens.synthetic import FoldedNormalMagnitudeConfig

        deviation, least = self.strengths
        return replace(
            super().config(),
            mean_firing_magnitudes=FoldedNormalMagnitudeConfig(mean=0.0, std=deviation, min_value=least),
        )


@dataclass(frozen=True)
class SynthBenchWorld(World):
    """SynthSAEBench-16k (arXiv 2602.14687), or its features, dimensions, latents and trees divided by a number.

    Trees whose children exclude one another and are as strong as their parents, features that fire together, strengths
    that vary, a bias; four features for each latent, so that an SAE has room for the frequent ones only.
    """

    kept = True

    @override
    def config(self) -> SyntheticModelConfig:
        from sae_lens.synthetic import (
            FoldedNormalMagnitudeConfig,
            LinearMagnitudeConfig,
            OrthogonalizationConfig,
        )

        config = super().config()
        assert config.hierarchy is not None
        return replace(
            config,
            hierarchy=replace(config.hierarchy, mutually_exclusive_portion=1.0, scale_children_by_parent=True),
            orthogonalization=OrthogonalizationConfig(num_steps=self.orthogonalization_steps, lr=3e-4),
            mean_firing_magnitudes=LinearMagnitudeConfig(start=5.0, end=4.0),
            std_firing_magnitudes=FoldedNormalMagnitudeConfig(mean=0.5, std=0.5),
            bias=0.5,
            seed=_SYNTH_BENCH_SEED,
        )


WORLDS = {
    "zipf-2x": World("quasi-orthogonal, Zipfian, superposition 2x", 128, 256),
    "zipf-4x": World("quasi-orthogonal, Zipfian, superposition 4x", 128, 512),
    "zipf-8x": World("quasi-orthogonal, Zipfian, superposition 8x", 128, 1024),
    "correlated": World("as zipf-4x, features fire together (rank 16)", 128, 512, correlation=(16, 0.2)),
    "hierarchical": World(
        "as zipf-4x, trees: a child fires only where its parent does", 128, 512,
        max_prob=0.05, min_prob=0.005, exponent=0.5, hierarchy=(32, 4, 2),
    ),
    "strengths-vary": UnequalWorld("as zipf-4x, features of unequal strength", 128, 512),
    "zipf-4x-wide": World("as zipf-4x, twice as wide", 256, 1024, max_prob=0.458),
    "synth-bench": SynthBenchWorld(
        "SynthSAEBench-16k", 768, 16_384, min_prob=5e-4, exponent=0.5, orthogonalization_steps=100,
        correlation=(25, 0.1), hierarchy=(128, 4, 3), num_latents=4096,
    ),
    "synth-bench-small": SynthBenchWorld(
        "as SynthSAEBench-16k, a quarter of its size", 192, 4096, max_prob=0.25, min_prob=5e-4, exponent=0.5,
        orthogonalization_steps=100, correlation=(6, 0.1), hierarchy=(32, 4, 3), num_latents=1024,
    ),
    "tiny": World("for tests", 12, 24, max_prob=0.3, min_prob=0.02, orthogonalization_steps=5),
}  # fmt: skip
