"""Agreement of a JumpReLU stand-in with the SAE it stands for."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from sae_lens.saes.sae import SAE

METADATA_KEY = "jumprelu_export"


@dataclass(frozen=True, kw_only=True)
class JumpReLUReport:
    """Comparison of a `jumprelu` SAE with the SAE it stands for; `str()` is a table for the terminal.

    Attributes:
        original_architecture: Architecture that it stands for.
        thresholds: "per_feature" or "global".
        encoder: "original", or "fitted" where it has none.
        n_calibration_tokens: Tokens that the thresholds come from.
        n_evaluation_tokens: Tokens that the metrics are of.
        n_nonfinite: Tokens left out of them because either SAE makes a NaN or an infinity of them.
        held_out: True if these are other tokens; False where there were too few to hold any out.
        l0_original, l0_export: Mean number of active features per token.
        explained_variance_original, explained_variance_export: 1 - sum ||z - z^||^2 / sum ||z - mean z||^2, in the
            space in which the SAE decodes; None where z does not vary.
        jaccard: Size of the intersection of a token's two active sets over that of their union, mean over tokens
            (1 where both are empty).
        precision: Part of the export's active features that the original activates too.
        recall: Part of the original's active features that the export activates too.
        n_never_selected: Features that no calibration token selected; their thresholds are a guess.
        n_cross_entropy_tokens: Tokens of the cross-entropies; 0 without a model.
        cross_entropy, cross_entropy_original, cross_entropy_export: The language model's, in nats per token:
            untouched, and with either reconstruction in place of the activations. None without a model.

    Example:
        >>> import torch
        >>> import sae_lens_afa as afa
        >>> sae = afa.TopAFATrainingSAE(afa.TopAFATrainingSAEConfig(d_in=16, d_sae=64))
        >>> report = afa.jumprelu_report(afa.export_jumprelu(sae, torch.randn(1280, 16)))
        >>> report.n_calibration_tokens, report.n_evaluation_tokens, report.held_out
        (1024, 256, True)
    """

    original_architecture: str
    thresholds: str
    n_calibration_tokens: int
    n_evaluation_tokens: int
    held_out: bool
    l0_original: float
    l0_export: float
    explained_variance_original: float | None
    explained_variance_export: float | None
    jaccard: float
    precision: float
    recall: float
    n_never_selected: int
    encoder: str = "original"
    n_nonfinite: int = 0
    n_cross_entropy_tokens: int = 0
    cross_entropy: float | None = None
    cross_entropy_original: float | None = None
    cross_entropy_export: float | None = None

    @property
    def cross_entropy_difference(self) -> float | None:
        """Cost of the stand-in for the language model beyond the original's, in nats per token."""
        if self.cross_entropy_export is None or self.cross_entropy_original is None:
            return None
        return self.cross_entropy_export - self.cross_entropy_original

    @property
    def note(self) -> str:
        """The approximation in words."""
        rule = "its own fixed threshold for each feature" if self.thresholds == "per_feature" else "one fixed threshold"
        rule = f"an encoder fitted to its dictionary, with {rule}," if self.encoder == "fitted" else rule
        tokens = f"{self.n_evaluation_tokens:,} " + ("held-out" if self.held_out else "calibration")
        return (
            f"An approximation: {rule} stands for the choice that the {self.original_architecture} SAE makes among all"
            f" features. On {tokens} tokens a token's active features agree to {self.jaccard:.1%} (Jaccard)."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return every metric, the cross-entropy's difference and the note; plain JSON, None for what is not known."""
        return {**asdict(self), "cross_entropy_difference": self.cross_entropy_difference, "note": self.note}

    def __str__(self) -> str:
        rows = [
            ("active features per token (L0)", self.l0_original, self.l0_export, ".1f"),
            ("explained variance", self.explained_variance_original, self.explained_variance_export, ".4f"),
        ]
        if self.cross_entropy is not None:
            name = f"cross-entropy (model: {self.cross_entropy:.4f})"
            rows.append((name, self.cross_entropy_original, self.cross_entropy_export, ".4f"))
        lines = [f"{'':<34}{'original':>10}{'jumprelu':>10}"]
        lines += [f"{name:<34}{_cell(a, spec):>10}{_cell(b, spec):>10}" for name, a, b, spec in rows]
        lines.append(
            f"active sets: Jaccard {self.jaccard:.4f}, precision {self.precision:.4f}, recall {self.recall:.4f}"
        )
        if self.n_nonfinite:
            lines.append(f"tokens with NaN or infinity, left out: {self.n_nonfinite:,}")
        if not self.held_out:
            lines.append("too few activations to hold any out: these metrics flatter the export")
        return "\n".join([*lines, self.note])


def _cell(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def jumprelu_report(sae: SAE[Any]) -> JumpReLUReport:
    """Return the report that `export_jumprelu` left in an SAE's metadata.

    Raises:
        ValueError: there is none, or not one that this version reads.

    Example:
        >>> import torch
        >>> import sae_lens_afa as afa
        >>> sae = afa.TopAFATrainingSAE(afa.TopAFATrainingSAEConfig(d_in=16, d_sae=64))
        >>> export = afa.export_jumprelu(sae, torch.randn(1280, 16))
        >>> afa.jumprelu_report(export).original_architecture
        'top_afa'
    """
    data = sae.cfg.metadata.get(METADATA_KEY)
    names = {field.name for field in fields(JumpReLUReport)}
    required = {field.name for field in fields(JumpReLUReport) if field.default is MISSING}
    if not isinstance(data, dict) or not required <= set(data):
        raise ValueError(
            f"this SAE's metadata has no {METADATA_KEY!r} that can be read here: it was not written by"
            " export_jumprelu of this version."
        )
    return JumpReLUReport(**{name: value for name, value in data.items() if name in names})
