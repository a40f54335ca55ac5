"""Arms of a comparison: an architecture with one hyperparameter that varies over a grid."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY
from sae_lens.saes.sae import TrainingSAEConfig

from sae_lens_afa.experiments.steering import TARGET_L0, check_steerable
from sae_lens_afa.loading.names import did_you_mean
from sae_lens_afa.training.preflight import set_for_run

_FORM = (
    "expected ARCHITECTURE:FIELD=VALUE,VALUE[;FIELD=VALUE...] as in topk:k=4,8 or LABEL=ARCHITECTURE:...; lr=NUMBER or"
    " lr=[NUMBER,NUMBER] among the fields is the arm's learning rate"
)

# Endings of settings that are numbers of training steps.
_STEPS = ("_steps", "_start_step")
_UNSCALED = ("none", "layer_norm")
# Where a setting must fit the width of the SAE: Matryoshka's nested widths, by default halves of halves.
_NESTED = 5


@dataclass(frozen=True)
class Run:
    """One SAE to train: an arm at one value of its grid, one budget and one learning rate.

    Attributes:
        label: Name of the arm in tables and plots.
        architecture: Its name in SAELens' registry.
        hyperparameter, value: The field of the configuration that varies, and its value here; or `target_l0`, to which
            the coefficient of a sparsity loss is steered.
        settings: Other fields of the configuration.
        steps, lr: Training steps and learning rate; those of the sweep where it is not said.

    Example:
        >>> from sae_lens_afa.experiments import Run
        >>> run = Run("topk", "topk", "k", 4)
        >>> run.name
        'topk k=4'
        >>> run.sae_config(d_in=8, d_sae=32).k
        4
    """

    label: str
    architecture: str
    hyperparameter: str
    value: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None
    lr: float | None = None

    @property
    def name(self) -> str:
        """Arm and value."""
        return f"{self.label} {self.hyperparameter}={self.value:g}"

    @property
    def key(self) -> str:
        """Name that is unique in a sweep."""
        return f"{self.name}, {self.steps} steps, lr {self.lr}"

    @property
    def target_l0(self) -> float | None:
        """The L0 to which a coefficient is steered; None where none is."""
        return self.value if self.hyperparameter == TARGET_L0 else None

    def sae_config(self, d_in: int, d_sae: int, device: str = "cpu") -> TrainingSAEConfig:
        """Return the SAE's configuration.

        Raises:
            ValueError: an unknown architecture or field, or a value that the architecture refuses.
        """
        config_class: Any = config_class_of(self.architecture)
        given = dict(self.settings)
        known = [f.name for f in fields(config_class)]
        if self.target_l0 is None:
            given[self.hyperparameter] = self.value
        else:
            check_steerable(self.architecture, known, given, self.target_l0)
        if "matryoshka_widths" in known:
            given.setdefault("matryoshka_widths", _nested_widths(d_sae))
        for name in given:
            if name not in known:
                raise ValueError(f"architecture {self.architecture!r} has no setting {name!r}{_near(name, known)}.")
        try:
            config = config_class(**{"d_in": d_in, "d_sae": d_sae, "device": device, **given})
            if self.steps is not None:
                set_for_run(config, self.steps)
            return config
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.name}: {error}") from error


@dataclass(frozen=True)
class Arm:
    """An architecture and the grid of its hyperparameter.

    Attributes:
        architecture: Any name that is registered with SAELens.
        hyperparameter: The field of its configuration that varies.
        values: The grid.
        settings: Other fields of the configuration, the same for all.
        label: Name in tables and plots; the architecture if empty.
        rates: Learning rates in place of the sweep's; each run is made with each.
        at_steps: Training steps for which the settings are that count steps; for others they change in proportion. If
            None, they are what they are.

    Example:
        >>> from sae_lens_afa.experiments import Arm
        >>> arm = Arm("top_afa", "afa_coefficient", (1 / 128, 1 / 32), label="ours")
        >>> [run.name for run in arm.runs()]
        ['ours afa_coefficient=0.0078125', 'ours afa_coefficient=0.03125']
        >>> Arm.parse("ours=top_afa:afa_coefficient=1/128,1/32") == arm
        True
        >>> [run.lr for run in Arm.parse("topk:k=4;lr=[0.001, 0.003]").runs()]
        [0.001, 0.003]
    """

    architecture: str
    hyperparameter: str
    values: tuple[float, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    rates: tuple[float, ...] = ()
    at_steps: int | None = None

    @property
    def name(self) -> str:
        """Label, or else the architecture."""
        return self.label or self.architecture

    def runs(self, steps: int | None = None, rates: Sequence[float | None] = (None,)) -> list[Run]:
        """Return a run for each value and learning rate."""
        settings = self._settings(steps)
        return [
            Run(self.name, self.architecture, self.hyperparameter, value, settings, steps, lr)
            for lr in self.rates or rates
            for value in self.values
        ]

    def _settings(self, steps: int | None) -> Mapping[str, Any]:
        of = self.at_steps
        if steps is None or of is None:
            return self.settings
        return {name: v * steps // of if name.endswith(_STEPS) else v for name, v in self.settings.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            **asdict(self),
            "label": self.name,
            "values": list(self.values),
            "settings": dict(self.settings),
            "rates": list(self.rates),
        }

    @classmethod
    def parse(cls, text: str) -> Arm:
        """Return the arm of a text such as `topk:k=4,8` or `label=top_afa:afa_coefficient=1/32;target_ratio=0.7`.

        Raises:
            ValueError: another form; the message says which is expected.
        """
        head, _, rest = text.partition(":")
        label, _, architecture = head.rpartition("=")
        grid, *settings = rest.split(";")
        name, _, values = grid.partition("=")
        pairs = [part.partition("=") for part in settings]
        try:
            numbers = tuple(_number(value) for value in values.split(","))
        except ValueError:
            raise ValueError(f"arms {text!r}: {values!r} are not numbers; {_FORM}.") from None
        if not architecture or not name or any(not key or not value for key, _, value in pairs):
            raise ValueError(f"arms {text!r} is not understood; {_FORM}.")
        given = {key: _value(value) for key, _, value in pairs}
        rates = given.pop("lr", [])
        return cls(architecture, name, numbers, given, label, tuple(rates if isinstance(rates, list) else [rates]))


def without_normalisation(runs: Sequence[Run]) -> list[Run]:
    """Return runs for activations that are ready when they reach the SAE; settings that say otherwise are kept."""
    return [replace(run, settings={"normalize_activations": "none", **run.settings}) for run in runs]


def check_runs(runs: Sequence[Run], d_in: int, d_sae: int) -> None:
    """Build every configuration once, so that what is wrong is said before anything is trained.

    Raises:
        ValueError: no runs, two of one name, an unknown architecture or field, a value that is refused.
    """
    if not runs:
        raise ValueError("nothing to compare: give at least one architecture with one value.")
    keys = [run.key for run in runs]
    if twice := sorted({run.name for run in runs if keys.count(run.key) > 1}):
        raise ValueError(f"{', '.join(twice)} is there twice; give the arms different labels (LABEL=ARCHITECTURE:...).")
    for run in runs:
        normalisation = run.sae_config(d_in, d_sae).normalize_activations
        if normalisation not in _UNSCALED:
            raise ValueError(
                f"{run.name}: normalize_activations={normalisation!r} needs an estimate of scale, which sweeps do not"
                f" make; use one of {', '.join(map(repr, _UNSCALED))}."
            )


def config_class_of(architecture: str) -> type[TrainingSAEConfig]:
    """Return the configuration class that SAELens has for training `architecture`.

    Raises:
        ValueError: it has none; the message lists near names.
    """
    if architecture not in SAE_TRAINING_CLASS_REGISTRY:
        known = list(SAE_TRAINING_CLASS_REGISTRY)
        raise ValueError(f"unknown architecture {architecture!r}{_near(architecture, known)}.")
    return SAE_TRAINING_CLASS_REGISTRY[architecture][1]


def _nested_widths(d_sae: int) -> list[int]:
    return sorted({max(1, d_sae >> shift) for shift in range(_NESTED)})


def _near(name: str, known: list[str]) -> str:
    return did_you_mean(name, known) or f"; there are {', '.join(known)}"


def _number(text: str) -> float:
    """Return a number or a quotient, an int where it is whole (`k` of TopK has to be one)."""
    numerator, _, denominator = text.partition("/")
    value = float(numerator) / float(denominator or 1)
    return int(value) if value.is_integer() else value


def _value(text: str) -> Any:
    """Return JSON where it is JSON (numbers, true, null), or else a string."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
