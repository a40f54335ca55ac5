"""Selection of active features: those whose norm matches the input's, or those above a threshold of their token.

Both rules are functions of tensors in `sae_lens_afa.selection.rules`. `norm_matching_topk`, that of top-AFA, has
interchangeable back ends with the same result: "numba" (compiled, for CPU), "triton" (compiled, for cuda) and "torch"
(any device, nothing to install). The environment variable SAE_LENS_AFA_BACKEND names the one that "auto" means.
"""

from sae_lens_afa.selection._backends import available_backends
from sae_lens_afa.selection.rules import above_threshold, norm_matching_topk

__all__ = ["above_threshold", "available_backends", "norm_matching_topk"]
