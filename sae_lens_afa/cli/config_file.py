"""`sae-lens-afa train --config FILE`: a run's settings as YAML or JSON, by SAELens' own names; flags go before them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from sae_lens.config import LanguageModelSAERunnerConfig, LoggingConfig
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

from sae_lens_afa.loading.names import did_you_mean, near

Settings = dict[str, Any]
# What SAELens writes into `sae` beside its fields.
_BESIDE_FIELDS = ("architecture", "metadata")
_KINDS: Mapping[str, Any] = {"int": int, "float": (int, float), "bool": bool, "str": str}


class _NumbersAsWritten(yaml.SafeLoader):
    """YAML in which 1e-3 is a number; PyYAML wants 1.0e-3."""


_NumbersAsWritten.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def check_architecture(name: Any, what: str) -> None:
    """Raise ValueError, beginning with `what`, unless SAELens can train an architecture of this name."""
    if name not in SAE_TRAINING_CLASS_REGISTRY:
        known = ", ".join(SAE_TRAINING_CLASS_REGISTRY)
        raise ValueError(f"{what} {name!r} is not known{near(str(name), SAE_TRAINING_CLASS_REGISTRY)}; all: {known}.")


def read_settings(path: str | Path, architecture: str = "standard") -> Settings:
    """Return the settings of a file, whose names and types are right: fields of the runner, `sae` and `logger`.

    Args:
        path: The file.
        architecture: Of the SAE, where the file does not say it.

    Raises:
        ValueError, OSError: one line that names the file and what is wrong with it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"--config {path} is not a file; give YAML or JSON, such as a run's runner_cfg.json.")
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), _NumbersAsWritten)  # JSON is YAML
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path} cannot be read: {' '.join(str(error).split())}") from None
    settings = _mapping(path, "the file", settings)
    sae = {"architecture": architecture, **_mapping(path, "sae", settings.get("sae"))}
    logger = {"log_to_wandb": False, **_mapping(path, "logger", settings.get("logger"))}
    check_architecture(sae["architecture"], f"--config {path}: sae.architecture")
    beside = {name: sae[name] for name in _BESIDE_FIELDS if name in sae}
    own = {name: value for name, value in sae.items() if name not in _BESIDE_FIELDS}
    runner = {name: value for name, value in settings.items() if name not in ("sae", "logger")}
    return {
        **_checked(path, "", runner, LanguageModelSAERunnerConfig),
        "sae": {**_checked(path, "sae.", own, _sae_config(sae)), **beside},
        "logger": _checked(path, "logger.", logger, LoggingConfig),
    }


def config_of(
    settings: Settings, flags: LanguageModelSAERunnerConfig[Any], given: Iterable[str], path: str | Path
) -> LanguageModelSAERunnerConfig[Any]:
    """Return the configuration of a file's settings, with those of the flags that are given in their place.

    Args:
        settings: Of the file.
        flags: What the flags say, with defaults for what they do not.
        given: Names of the fields that they do say.
        path: The file, for messages.

    Raises:
        ValueError: a value that a configuration refuses.
    """
    whole: Settings = {**settings, "sae": dict(settings["sae"]), "logger": dict(settings["logger"])}
    for name in given:
        for part, config in ((whole["sae"], flags.sae), (whole["logger"], flags.logger), (whole, flags)):
            if name in _fields(type(config)):
                part[name] = getattr(config, name)
    try:
        whole["sae"] = _sae_config(whole["sae"]).from_dict(whole["sae"])
        whole["logger"] = LoggingConfig(**whole["logger"])
        return LanguageModelSAERunnerConfig(**whole)
    except (TypeError, ValueError) as error:
        raise ValueError(f"--config {path}: {error}") from error


def _mapping(path: Path, what: str, value: Any) -> Settings:
    """Return a mapping, empty for nothing."""
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"--config {path}: {what} must hold settings as name: value.")
    return value


def _fields(config: type[Any]) -> dict[str, str]:
    """Return the fields of a configuration with their types in words."""
    return {each.name: each.type.__name__ if isinstance(each.type, type) else str(each.type) for each in fields(config)}


def _sae_config(sae: Settings) -> Any:
    return SAE_TRAINING_CLASS_REGISTRY[sae["architecture"]][1]


def _checked(path: Path, where: str, given: Settings, config: type[Any]) -> Settings:
    """Return settings, whole numbers as integers and lists as tuples where they have to be.

    Raises:
        ValueError: an unknown name, or a value of another type than int, float, bool or str where it must be that.
    """
    known, checked = _fields(config), {}
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"--config {path}: there is no setting {where}{name}{did_you_mean(name, list(known))}")
        kind = known[name].removesuffix(" | None")
        if kind == "int" and isinstance(value, float) and value.is_integer():
            value = int(value)
        if kind.startswith("tuple") and isinstance(value, list):
            value = tuple(value)
        right = kind not in _KINDS or (isinstance(value, _KINDS[kind]) and (kind == "bool") == isinstance(value, bool))
        if not right and not (value is None and kind != known[name]):
            raise ValueError(f"--config {path}: {where}{name} must be of type {known[name]}, got {value!r}.")
        checked[name] = value
    return checked
