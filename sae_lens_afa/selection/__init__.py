"""Selection of active features, by norm, by a threshold of their token, or by pursuit.

`norm_matching_topk` is the rule of top-AFA, `above_threshold` that of afa_threshold, `pursue` that of afa_pursuit. Back
ends are interchangeable and give the same result: "numba" (compiled, for CPU), "triton" (compiled, for cuda; not of
`above_threshold`) and "torch" (any device, nothing to install). The environment variable SAE_LENS_AFA_BACKEND names the
one that "auto" means.
"""

from sae_lens_afa.selection._backends import available_backends
from sae_lens_afa.selection.pursuit import fit_gradients, pursue
from sae_lens_afa.selection.pursuit_rule import PursuitRule
from sae_lens_afa.selection.rules import above_threshold, norm_matching_topk

__all__ = ["PursuitRule", "above_threshold", "available_backends", "fit_gradients", "norm_matching_topk", "pursue"]
