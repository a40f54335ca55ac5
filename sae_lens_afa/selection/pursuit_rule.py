"""The numbers of a pursuit's rule, which every back end reads; `sae_lens_afa.selection.pursuit` says what they do."""

from __future__ import annotations

from typing import NamedTuple

# Share of a token's norm that is rounding, and no residual: `floor` is never less.
RESOLUTION = 1e-4


class PursuitRule(NamedTuple):
    """The rule of a pursuit: what it adds, and for how long.

    Attributes:
        threshold: t, by which a correlation has to exceed the norm of the residual: c sqrt(2 ln d_sae / d_in).
        floor: Share of the token's own norm (or of the typical one, if that is larger) below which the residual's norm
            does not lower the threshold any more; at least `RESOLUTION`.
        weak: Share of the largest correlation that a feature needs to join together with it. 1: one at a time.
        max_stages: Stages, and so looks at all features, after which a token is left as it is.

    Example:
        >>> from sae_lens_afa.functional import universal_ratio
        >>> from sae_lens_afa.selection import PursuitRule
        >>> PursuitRule(universal_ratio(d_in=768, d_sae=12288), floor=0.2, weak=0.7, max_stages=32).weak
        0.7
    """

    threshold: float
    floor: float
    weak: float
    max_stages: int
