"""Files of an evaluation: metrics.json, plot_data.parquet, tokens.parquet, plots."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens_afa.evals.result import AFAResult, results_table
from sae_lens_afa.files import write_into

if TYPE_CHECKING:
    import pandas as pd

# Of metrics.json: raised when a key or its meaning changes. Version 1 called the metrics "figures".
_VERSION = 2
_KEY_OF_METRICS = {1: "figures", _VERSION: "metrics"}
METRICS_JSON, TOKENS, PLOT_DATA = "metrics.json", "tokens.parquet", "plot_data.parquet"
PLOTS = ("zf", "eps_lbo", "l0")
FORMATS = ("png", "svg", "pdf", "html")
# Tokens of each SAE that are kept for plots: enough for a density, a megabyte or so for twelve layers.
_PLOT_TOKENS = 3000


@dataclass(frozen=True)
class EvalReport:
    """An evaluation on disk; `str()` is a table for the terminal.

    Attributes:
        folder: Its place.
        results: Results by SAE.
        described: Architecture, sizes and hook by SAE.
        settings: Model, dataset, tokens.
        files: Files that were written.

    Example:
        >>> from pathlib import Path
        >>> import sae_lens_afa as afa
        >>> from sae_lens_afa.reports import EvalReport
        >>> result = afa.AFAResult.from_dict({"n_tokens": 128, "d_sae": 64, "l0_mean": 20.0})
        >>> print(EvalReport(Path("runs/eval"), {"a": result}, {}, {}))
                                                 a
        tokens                                 128
        features (d_sae)                        64
        active features per token (L0), mean  20.0
    """

    folder: Path
    results: Mapping[str, AFAResult]
    described: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any]
    files: Sequence[Path] = field(default=(), compare=False)

    def __str__(self) -> str:
        parts = [results_table(self.results)]
        kept = {name: result.without_outliers for name, result in self.results.items() if result.without_outliers}
        if kept:
            limits = ", ".join(f"{result.outlier_norm:.4g}" for result in self.results.values())
            parts.append(f"without tokens of a norm above {limits}\n{results_table(kept)}")
        return "\n\n".join(parts)


def write_report(
    folder: Path,
    results: Mapping[str, AFAResult],
    described: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
    *,
    per_token: bool,
) -> EvalReport:
    """Write the metrics, the plots and what they are drawn from: all files or none.

    Args:
        folder: Where to write; files of an evaluation that is there are replaced.
        results: Results by SAE, with their tokens.
        described: As in `EvalReport`.
        settings: As in `EvalReport`.
        per_token: Write tokens.parquet with every token that is kept.
    """
    import pandas as pd

    tables = {name: result.tokens.assign(sae=name) for name, result in results.items() if result.tokens is not None}
    plotted = [
        table if len(table) <= _PLOT_TOKENS else table.sample(_PLOT_TOKENS, random_state=0) for table in tables.values()
    ]
    metrics = {
        "version": _VERSION,
        "settings": dict(settings),
        "saes": {name: {**described[name], "metrics": result.to_dict()} for name, result in results.items()},
    }

    def write(partial: Path) -> None:
        pd.concat(plotted, ignore_index=True).to_parquet(partial / PLOT_DATA)
        if per_token:
            pd.concat(tables.values(), ignore_index=True).to_parquet(partial / TOKENS)
        draw_plots(EvalReport(partial, results, described, settings), partial)
        (partial / METRICS_JSON).write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n")

    # What an evaluation that is replaced had beyond this one is not of this one.
    names = (METRICS_JSON, TOKENS, PLOT_DATA, *(f"{plot}.{suffix}" for plot in PLOTS for suffix in FORMATS))
    files = write_into(folder, write, remove=names)
    return EvalReport(folder, results, described, settings, files)


def read_report(folder: str | Path) -> EvalReport:
    """Read the evaluation in a folder, as `AFAResult.from_dict` does; its results have no tokens.

    Raises:
        FileNotFoundError: there is none.
        ValueError: metrics.json is damaged or of another version of the format.

    Example:
        >>> from pathlib import Path
        >>> from sae_lens_afa.reports import read_report
        >>> saes = '{"a": {"architecture": "top_afa", "metrics": {"n_tokens": 128, "d_sae": 64, "l0_mean": 20.0}}}'
        >>> _ = Path("metrics.json").write_text('{"version": 2, "settings": {}, "saes": ' + saes + "}")
        >>> read_report(".").results["a"].l0_mean
        20.0
    """
    folder = Path(folder)
    path = folder / METRICS_JSON
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {METRICS_JSON}; give the output folder of an evaluation.")
    try:
        data = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); run the evaluation again.") from error
    version = data.get("version") if isinstance(data, dict) else None
    if version not in _KEY_OF_METRICS:
        known = " and ".join(map(str, _KEY_OF_METRICS))
        raise ValueError(
            f"{path} is of version {version!r}, this sae-lens-afa reads versions {known}:"
            " run the evaluation again, or use the sae-lens-afa that wrote it."
        )
    try:
        saes: dict[str, dict[str, Any]] = {name: dict(sae) for name, sae in data["saes"].items()}
        results = {name: AFAResult.from_dict(sae.pop(_KEY_OF_METRICS[version])) for name, sae in saes.items()}
        return EvalReport(folder, results, saes, data["settings"])
    except KeyError as error:
        raise ValueError(f"{path} has no {error}; run the evaluation again.") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_tokens(folder: Path) -> pd.DataFrame:
    """Read per-token norms of all SAEs: every token if they were asked for, else those kept for plots.

    Raises:
        FileNotFoundError: the folder has neither.
    """
    import pandas as pd

    for name in (TOKENS, PLOT_DATA):
        if (folder / name).is_file():
            return pd.read_parquet(folder / name)
    raise FileNotFoundError(f"{folder} has neither {TOKENS} nor {PLOT_DATA}; run the evaluation again.")


def draw_plots(report: EvalReport, output: str | Path, formats: Sequence[str] = ("png", "html")) -> list[Path]:
    """Draw the ZF plot and the half-violins in each format, and where a hook has several SAEs loss against L0.

    Args:
        report: As `read_report` or `evaluate_saes` gives it; the tokens are read from its folder.
        output: Folder for the plots.
        formats: Some of png, svg, pdf and html.

    Returns:
        The files written.

    Raises:
        FileNotFoundError: the report's folder has no tokens.
        ValueError: an unknown format, or nothing to draw.

    Example:
        >>> from sae_lens_afa.reports import draw_plots, read_report
        >>> report = read_report("runs/eval")  # doctest: +SKIP
        >>> draw_plots(report, "figures", ["pdf"])  # doctest: +SKIP
    """
    from sae_lens_afa import plots

    output = Path(output)
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ValueError(f"unknown format {', '.join(unknown)}; choose from {', '.join(FORMATS)}.")
    tokens = read_tokens(report.folder)
    # The results know how many tokens could not be judged; the table does not.
    drawn = {str(name): replace(report.results[str(name)], tokens=part) for name, part in _by_sae(tokens)}
    title = f"{report.settings['model']}, {report.settings['dataset']}"

    def paths(name: str) -> list[Path]:
        return [output / f"{name}.{suffix}" for suffix in formats]

    plots.zf_plot(drawn, title=title, save=paths("zf"))
    plots.eps_lbo_plot(drawn, title=title, save=paths("eps_lbo"))
    written = paths("zf") + paths("eps_lbo")
    frontier = _frontier(report)
    if len(frontier):
        plots.l0_plot(frontier, loss_label="normalised MSE, mean", title=title, save=paths("l0"))
        written += paths("l0")
    return written


def _by_sae(tokens: pd.DataFrame) -> Iterable[tuple[Any, pd.DataFrame]]:
    return tokens.groupby("sae", sort=False)


def _frontier(report: EvalReport) -> pd.DataFrame:
    """Return L0 and loss of the SAEs at hooks that have several: those of different hooks do not compare."""
    import pandas as pd

    hooks = Counter(about["hook_name"] for about in report.described.values())
    rows = [
        {
            "layer": report.described[name]["hook_name"],
            "architecture": report.described[name]["architecture"],
            "l0": result.l0_mean,
            "loss": result.nmse_mean,
            "label": name,
            "n_nonfinite": result.n_nonfinite,
        }
        for name, result in report.results.items()
        if hooks[report.described[name]["hook_name"]] > 1
    ]
    return pd.DataFrame(rows)
