"""`sae-lens-afa push` as a function: which folders, which evaluations, and what goes with them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_lens_afa.evals.report import read_report, read_tokens
from sae_lens_afa.files import RUNNER_CFG_FILENAME
from sae_lens_afa.hub._remote import ROOT, check_repo_id
from sae_lens_afa.hub.push import push_to_hub

JUMPRELU_SUFFIX = "-jumprelu"


@dataclass(frozen=True, kw_only=True)
class PushRequest:
    """What `sae-lens-afa push` is asked.

    Attributes:
        repo_id: "owner/name".
        sae: Folders of saved SAEs, each "FOLDER" (its name is the id) or "ID=FOLDER".
        metrics: Output folders of `sae-lens-afa eval`, with figures of SAEs of these names.
        private, revision, tag, create_pr, license, dataset, base_model, message: As for `push_to_hub`.
        with_jumprelu: Push an approximation of each SAE too that loads without this package, as ID-jumprelu.
        calibration: What `export` calibrates that one on (fields of `ExportRequest`).
    """

    repo_id: str
    sae: Sequence[str]
    metrics: Sequence[Path] = ()
    private: bool | None = None
    revision: str | None = None
    tag: str | None = None
    create_pr: bool = False
    license: str | None = None
    dataset: Sequence[str] = ()
    base_model: Sequence[str] = ()
    message: str | None = None
    with_jumprelu: bool = False
    calibration: Mapping[str, Any] | None = None


def push_command(request: PushRequest) -> str:
    """Push folders of SAEs with their evaluations; returns the URL of the commit.

    Raises:
        ValueError, TypeError, OSError: one line that names the option and says what to do.
    """
    check_repo_id(request.repo_id)
    folders = named_folders(request.sae)
    evaluated = _evaluations(request.metrics, folders)
    if request.calibration and not request.with_jumprelu:
        raise ValueError("a calibration is for --with-jumprelu: give that too, or leave it out.")
    with tempfile.TemporaryDirectory(prefix="sae-lens-afa-") as temporary:
        saes = dict(folders)
        if request.with_jumprelu:
            for i, (sae_id, folder) in enumerate(folders.items()):
                saes[_sibling(sae_id, folder)] = _exported(folder, Path(temporary) / str(i), request.calibration or {})
        plots = {sae_id: _draw(*evaluated[sae_id], sae_id, Path(temporary), i) for i, sae_id in enumerate(evaluated)}
        return push_to_hub(
            saes,
            request.repo_id,
            private=request.private,
            revision=request.revision,
            tag=request.tag,
            create_pr=request.create_pr,
            metrics={sae_id: _figures(*place) for sae_id, place in evaluated.items()},
            plots=plots,
            license=request.license,
            datasets=list(request.dataset) or None,
            base_model=list(request.base_model) or None,
            commit_message=request.message,
        )


def named_folders(saes: Sequence[str]) -> dict[str, Path]:
    """Folders by id, of "FOLDER" or "ID=FOLDER".

    Raises:
        ValueError: two have the same id, or a folder has no name.
    """
    folders: dict[str, Path] = {}
    for given in saes:
        sae_id, equals, folder = given.partition("=")
        path = Path(folder if equals else given)
        name = sae_id if equals else path.resolve().name
        if not name or (name in folders):
            raise ValueError(f"{given!r} needs an id of its own: give ID=FOLDER ({name!r} is taken or empty).")
        folders[name] = path
    return folders


def _evaluations(reports: Sequence[Path], folders: Mapping[str, Path]) -> dict[str, tuple[Path, str]]:
    """Where each SAE was evaluated: the report's folder, and the SAE's name in it."""
    found: dict[str, tuple[Path, str]] = {}
    for report in reports:
        names = list(read_report(report).results)
        matched = {
            sae_id: name
            for sae_id, folder in folders.items()
            for name in (sae_id, folder.name, str(folder))
            if name in names
        }
        if not matched:
            raise ValueError(
                f"--metrics {report} has figures of {', '.join(names)}, none of which is pushed"
                f" ({', '.join(folders)}): give ID=FOLDER with such an id."
            )
        found |= {sae_id: (report, name) for sae_id, name in matched.items()}
    return found


def _figures(report: Path, name: str) -> dict[str, Any]:
    evaluation = read_report(report)
    settings = {key: evaluation.settings[key] for key in ("model", "dataset", "context_size")}
    return {**settings, **evaluation.results[name].to_dict()}


def _draw(report: Path, name: str, sae_id: str, folder: Path, i: int) -> Path:
    from sae_lens_afa.plots import zf_plot

    tokens = read_tokens(report)
    path = folder / f"{i}.png"
    zf_plot(tokens[tokens["sae"] == name].assign(sae=sae_id), save=path)
    return path


def _sibling(sae_id: str, folder: Path) -> str:
    return (folder.resolve().name if sae_id == ROOT else sae_id) + JUMPRELU_SUFFIX


def _exported(sae: Path, output: Path, calibration: Mapping[str, Any]) -> Path:
    from sae_lens_afa.interop.command import ExportRequest, export_command

    folder = export_command(ExportRequest(output=output, sae=sae, **calibration)).folder
    if (sae / RUNNER_CFG_FILENAME).is_file():  # it was trained as the original was
        shutil.copyfile(sae / RUNNER_CFG_FILENAME, folder / RUNNER_CFG_FILENAME)
    return folder
