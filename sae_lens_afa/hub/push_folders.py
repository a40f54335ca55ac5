"""Folders of SAEs, pushed with their evaluations and, on request, with stand-ins."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens_afa.files import RUNNER_CFG_FILENAME
from sae_lens_afa.hub._remote import ROOT, check_repo_id
from sae_lens_afa.hub.push import push_to_hub
from sae_lens_afa.interop.export_folder import export_to_folder
from sae_lens_afa.plots import zf_plot
from sae_lens_afa.reports.folder import EvalReport, read_report, read_tokens

if TYPE_CHECKING:
    from datasets import Dataset
    from transformer_lens.HookedRootModule import HookedRootModule

JUMPRELU_SUFFIX = "-jumprelu"


def push_folders(
    repo_id: str,
    sae: Sequence[str],
    *,
    metrics: Sequence[str | Path] = (),
    features: Sequence[str] = (),
    private: bool | None = None,
    revision: str | None = None,
    tag: str | None = None,
    create_pr: bool = False,
    license: str | None = None,
    datasets: Sequence[str] = (),
    base_model: Sequence[str] = (),
    commit_message: str | None = None,
    with_jumprelu: bool = False,
    activations: str | Path | None = None,
    model: str | HookedRootModule | None = None,
    dataset: str | Dataset | None = None,
) -> str:
    """Push folders of SAEs with their evaluations, as `push_to_hub` does.

    Args:
        repo_id: "owner/name".
        sae: Folders of saved SAEs, each "FOLDER" (its name is the id) or "ID=FOLDER".
        metrics: Folders that `reports.evaluate_saes` wrote, with metrics of SAEs of these names.
        features: Folders that `afa.features` wrote, each "ID=FOLDER"; of a single SAE "FOLDER" will do.
        private: As for `push_to_hub`; so are the next three.
        revision: Branch to commit to.
        tag: Tag for the commit.
        create_pr: Open a pull request instead.
        license: For the card; so are the next two.
        datasets: Hub ids; if empty, those of the SAEs' metadata.
        base_model: Hub ids; if empty, those of the SAEs' metadata.
        commit_message: None lists the ids.
        with_jumprelu: Push an approximation of each SAE too that loads without this package, as ID-jumprelu.
        activations: A file on which `interop.export_to_folder` calibrates the approximations.
        model: Or the model and
        dataset: the text for that. None of the three: those that the SAEs' metadata name.

    Returns:
        The URL of the commit, or of the pull request.

    Raises:
        ValueError, TypeError, OSError: one line that names the parameter and says what to do.

    Example:
        >>> from sae_lens_afa.hub.push_folders import push_folders
        >>> push_folders("me/saes", ["runs/sae"], metrics=["runs/eval"])  # doctest: +SKIP
        'https://huggingface.co/me/saes/commit/...'
    """
    check_repo_id(repo_id)
    folders = named_folders(sae)
    evaluated, pages = _evaluations(metrics, folders), _pages(features, folders)
    calibration = {"activations": activations, "model": model, "dataset": dataset}
    if not with_jumprelu and any(value is not None for value in calibration.values()):
        raise ValueError("a calibration is for with_jumprelu: give that too, or leave it out.")
    with tempfile.TemporaryDirectory(prefix="sae-lens-afa-") as temporary:
        saes = dict(folders)
        if with_jumprelu:
            for i, (sae_id, folder) in enumerate(folders.items()):
                saes[_sibling(sae_id, folder)] = _exported(folder, Path(temporary) / str(i), calibration)
        plots = _drawn(evaluated, Path(temporary))
        return push_to_hub(
            saes,
            repo_id,
            private=private,
            revision=revision,
            tag=tag,
            create_pr=create_pr,
            metrics={sae_id: _metrics(*place) for sae_id, place in evaluated.items()},
            plots=plots,
            features=pages,
            license=license,
            datasets=list(datasets) or None,
            base_model=list(base_model) or None,
            commit_message=commit_message,
        )


def named_folders(saes: Sequence[str]) -> dict[str, Path]:
    """Return folders by id, of "FOLDER" or "ID=FOLDER".

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


def _evaluations(reports: Sequence[str | Path], folders: Mapping[str, Path]) -> dict[str, tuple[EvalReport, str]]:
    """Find where each SAE was evaluated: the report, and the SAE's name in it."""
    found: dict[str, tuple[EvalReport, str]] = {}
    for folder_of_report in reports:
        report = read_report(folder_of_report)
        matched = {
            sae_id: name
            for sae_id, folder in folders.items()
            for name in (sae_id, folder.name, str(folder))
            if name in report.results
        }
        if not matched:
            raise ValueError(
                f"metrics {folder_of_report} has metrics of {', '.join(report.results)}, none of which is pushed"
                f" ({', '.join(folders)}): give ID=FOLDER with such an id."
            )
        found |= {sae_id: (report, name) for sae_id, name in matched.items()}
    return found


def _pages(features: Sequence[str], folders: Mapping[str, Path]) -> dict[str, Path]:
    """Return pages of features by the SAEs' ids."""
    if len(folders) == len(features) == 1 and "=" not in features[0]:
        return {next(iter(folders)): Path(features[0])}
    for given in features:
        if given.partition("=")[0] not in folders:
            raise ValueError(f"features {given!r} are of none of the SAEs ({', '.join(folders)}): give ID=FOLDER.")
    return named_folders(features)


def _metrics(report: EvalReport, name: str) -> dict[str, Any]:
    settings = {key: report.settings[key] for key in ("model", "dataset", "context_size")}
    return {**settings, **report.results[name].to_dict()}


def _drawn(evaluated: Mapping[str, tuple[EvalReport, str]], folder: Path) -> dict[str, Path]:
    """Draw the ZF plot of each SAE; the tokens of a report are read once for all of its SAEs."""
    tokens = {place: read_tokens(place) for place in {report.folder for report, _ in evaluated.values()}}
    plots: dict[str, Path] = {}
    for i, (sae_id, (report, name)) in enumerate(evaluated.items()):
        own = tokens[report.folder]
        plots[sae_id] = folder / f"{i}.png"
        zf_plot(own[own["sae"] == name].assign(sae=sae_id), save=plots[sae_id])
    return plots


def _sibling(sae_id: str, folder: Path) -> str:
    return (folder.resolve().name if sae_id == ROOT else sae_id) + JUMPRELU_SUFFIX


def _exported(sae: Path, output: Path, calibration: Mapping[str, Any]) -> Path:
    export_to_folder(sae, output, **calibration)
    if (sae / RUNNER_CFG_FILENAME).is_file():  # it was trained as the original was
        shutil.copyfile(sae / RUNNER_CFG_FILENAME, output / RUNNER_CFG_FILENAME)
    return output
