"""Training and evaluation by several processes, one for each GPU, started by torchrun.

In training, every rank holds the whole SAE and the whole mixing buffer. The language model reads each batch of text by
parts, one on each rank; a batch of activations is shared out, and gradients are averaged. So N ranks do what one
process does with the same settings, to rounding, and any number of ranks may go on where others stopped. In an
evaluation they share the prompts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae_lens_afa.distributed.distributed_runner import DistributedSAETrainingRunner
    from sae_lens_afa.distributed.shared_evaluation import shared_evaluation
else:
    from sae_lens_afa._lazy import lazy_names

    __getattr__, __dir__ = lazy_names(
        globals(),
        {
            "sae_lens_afa.distributed.distributed_runner": ("DistributedSAETrainingRunner",),
            "sae_lens_afa.distributed.shared_evaluation": ("shared_evaluation",),
        },
    )

__all__ = ["DistributedSAETrainingRunner", "shared_evaluation"]
