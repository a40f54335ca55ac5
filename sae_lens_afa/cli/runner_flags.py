"""The flags of `sae-lens-afa train`: those of SAELens' runner, without abbreviations, `--config` and `--overwrite`."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import field, fields, make_dataclass
from functools import partial
from itertools import pairwise, zip_longest
from typing import Any

from sae_lens.config import LanguageModelSAERunnerConfig, LoggingConfig
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY
from sae_lens.saes.sae import TrainingSAEConfig
from simple_parsing import ArgumentParser, subgroups

from sae_lens_afa.cli.config_file import check_architecture, config_of, read_settings
from sae_lens_afa.loading.names import did_you_mean
from sae_lens_afa.runner import InterruptibleTrainingRunner, config_from_checkpoint

_RESUME = "--resume_from_checkpoint"
_OVERWRITE, _KEEP = "--overwrite", "--keep_checkpoints"
_CONFIG, _ARCHITECTURE = "--config", "--architecture"
# Flags that may stand beside a checkpoint whose run goes on with its own settings: another machine has other devices.
_WITH_RESUME = ("--device", "--output_path", _KEEP)
# SAELens' own sizes, by which its flags get their defaults.
_D_IN, _D_SAE = 512, 1024


def train_with_flags(
    args: Sequence[str], runner_class: type[InterruptibleTrainingRunner] = InterruptibleTrainingRunner
) -> str:
    """Train an SAE as these flags say.

    Args:
        args: Flags of SAELens' runner, spelt with underscores or dashes, `--overwrite` and `--keep-checkpoints N`;
            `--config FILE` gives what no flag gives; `--resume-from-checkpoint FOLDER` beside no others than
            `--device`, `--output-path` and `--keep-checkpoints` continues a run with its own settings.
        runner_class: That of the runner.

    Returns:
        Text for the terminal: where the SAE is and how good it is; nothing where another process has written it.

    Raises:
        ValueError, OSError: one line that names the flag or field and says what to do.
        TrainingInterrupted: stopped; it says where the checkpoint is.
    """
    args = [_with_underscores(arg) for arg in args]
    overwrite = _OVERWRITE in args
    args, kept = _without_kept([arg for arg in args if arg != _OVERWRITE])
    parts = _parts(args)
    flags = dict(zip_longest(parts[::2], parts[1::2]))
    if _RESUME in flags and flags.keys() <= {_RESUME, *_WITH_RESUME}:
        cfg = config_from_checkpoint(flags.pop(_RESUME), device=flags.get("--device"))
        cfg.output_path = flags.get("--output_path", cfg.output_path)
    elif _CONFIG in flags:
        cfg = _config_from_file(args)
    else:
        cfg = parse_config(args)
    runner = runner_class(cfg, overwrite=overwrite, keep_checkpoints=kept)
    runner.run()
    if not runner.writes:
        return ""
    try:
        return f"\n{runner.summary()}"
    except TypeError as error:  # an architecture that AFA does not judge
        return f"\nsaved in {cfg.output_path} ({error})"


def _without_kept(args: Sequence[str]) -> tuple[list[str], int | None]:
    """Return the flags without `--keep-checkpoints N`, and N."""
    parts = list(args)
    at = next((i for i, arg in enumerate(parts) if _name(arg) == _KEEP), None)
    if at is None:
        return parts, None
    end = at + (1 if "=" in parts[at] else 2)
    value = "=".join(parts[at:end]).partition("=")[2]
    if not value.isdigit():
        raise ValueError(f"{_KEEP} needs a number of checkpoints, got {value!r}.")
    return [*parts[:at], *parts[end:]], int(value)


def _config_from_file(args: Sequence[str]) -> LanguageModelSAERunnerConfig[Any]:
    """Return the configuration of `--config FILE`, with the other flags in place of what the file says."""
    at = next(i for i, arg in enumerate(args) if _name(arg) == _CONFIG)
    joined = "=" in args[at]
    path = args[at].partition("=")[2] if joined else (*args[at + 1 : at + 2], "--")[0]
    if not path or path.startswith("--"):
        raise ValueError(f"{_CONFIG} needs a file: YAML or JSON, by SAELens' names of settings.")
    rest = [*args[:at], *args[at + (1 if joined else 2) :]]
    given = [_name(arg) for arg in rest if arg.startswith("--")]
    settings = read_settings(path, _architecture(rest))
    architecture = settings["sae"]["architecture"]
    if _ARCHITECTURE not in given:
        rest = [_ARCHITECTURE, architecture, *rest]
    elif _architecture(rest) != architecture:
        raise ValueError(f"{_ARCHITECTURE} and {path} name two architectures: give one.")
    return config_of(settings, parse_config(rest), [name.removeprefix("--") for name in given], path)


def parse_config(args: Sequence[str]) -> LanguageModelSAERunnerConfig[Any]:
    """Return the configuration of SAELens' runner that these flags give.

    Raises:
        ValueError: an unknown flag (the message names the nearest, or the architectures that have it), or a value that
            cannot be read.
        SystemExit: `--help` was asked for, and printed.
    """
    args = [_with_underscores(arg) for arg in args]
    architecture = _architecture(args)
    try:
        parser = _parser()
        namespace, unknown = parser.parse_known_args(list(args) or ["--help"])
    except ArgumentError as error:
        raise ValueError(f"{error}; see sae-lens-afa train --help.") from error
    if unknown:
        raise ValueError(_explain(unknown, architecture, _flags(parser)))
    return namespace.cfg


def _parser() -> ArgumentParser:
    groups: Mapping[str, Any] = {
        name: partial(config, d_in=_D_IN, d_sae=_D_SAE) for name, (_, config) in SAE_TRAINING_CLASS_REGISTRY.items()
    }
    sae: Any = subgroups(dict(groups), default="standard", alias="--architecture")
    # Not SAELens' default: a first run must not ask for an account.
    logger: Any = field(default_factory=lambda: LoggingConfig(log_to_wandb=False))
    own = [("sae", TrainingSAEConfig, sae), ("logger", LoggingConfig, logger)]
    config = make_dataclass("RunnerConfig", own, bases=(LanguageModelSAERunnerConfig,))
    parser = _Parser(
        prog="sae-lens-afa train",
        description="Train an SAE of any architecture. --resume_from_checkpoint FOLDER on its own continues a run with"
        " its own settings.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument(
        _CONFIG,
        help="YAML or JSON by these names, the SAE's under `sae`, as in a run's runner_cfg.json.",
    )
    parser.add_argument(_OVERWRITE, action="store_true", help="Replace an SAE in --output_path.")
    parser.add_argument(_KEEP, metavar="N", help="Only so many of the newest checkpoints stay; default: all.")
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    parser.add_arguments(config, dest="cfg")
    return parser


class _Parser(ArgumentParser):
    """A parser whose errors are exceptions: argparse ends the process on some of them."""

    def error(self, message: str) -> Any:
        raise ValueError(f"{message}; see sae-lens-afa train --help.")


def _flags(parser: ArgumentParser) -> list[str]:
    return sorted(flag for flag in parser._option_string_actions if flag.startswith("--"))  # pyright: ignore[reportPrivateUsage]


def _architecture(args: Sequence[str]) -> str:
    """Return the architecture that the flags name.

    Raises:
        ValueError: SAELens does not know it.
    """
    name = next((value for flag, value in pairwise(_parts(args)) if flag == "--architecture"), "standard")
    check_architecture(name, _ARCHITECTURE)
    return name


def _explain(unknown: Sequence[str], architecture: str, known: Sequence[str]) -> str:
    flag = next((arg for arg in unknown if arg.startswith("-")), unknown[0]).partition("=")[0]
    if not flag.startswith("-"):
        return f"{flag!r} is not a flag, and no flag before it takes it; see sae-lens-afa train --help."
    name = flag.lstrip("-")
    having = [
        other
        for other, (_, config) in SAE_TRAINING_CLASS_REGISTRY.items()
        if name in {field.name for field in fields(config)}
    ]
    if having:
        return f"{architecture} has no {flag}; it is an option of {', '.join(having)}."
    return f"unknown flag {flag}{did_you_mean(flag, known, n=1) or '; see sae-lens-afa train --help.'}"


def _name(arg: str) -> str:
    """Return the flag of an argument, without its value."""
    return arg.partition("=")[0]


def _parts(args: Sequence[str]) -> list[str]:
    """Return flags and values one by one."""
    return [part for arg in args for part in arg.split("=", 1)]


def _with_underscores(arg: str) -> str:
    """Return a flag in SAELens' spelling, which has underscores."""
    if not arg.startswith("--"):
        return arg
    flag, equals, value = arg.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value
