"""Evaluations and feature pages whose prompts several processes share."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch.distributed as dist

from sae_lens_afa import over_ranks, torchrun
from sae_lens_afa.distributed.ranks import Ranks


@contextmanager
def shared_evaluation(device: str = "cpu") -> Generator[str]:
    """Within, `run_afa_evals`, `evaluate_saes` and `features` are the work of all processes that torchrun started.

    Every process makes the same calls with the same SAEs. The first reads the text and sends tokens; each runs the
    model and the SAEs on every N-th batch of prompts, and all get the result of all tokens, which is that of one
    process but for the order of its sums. Files are written by the first. A process that is alone does all by itself.

    Metrics of tokens that each process has of its own are joined by `AFAMetrics.all_gather`.

    Args:
        device: cpu, or cuda for a GPU for each process of a machine.

    Yields:
        The device of this process, for its model and SAEs.

    Raises:
        RankLostError: another process has died.

    Example:
        >>> from sae_lens_afa.distributed import shared_evaluation
        >>> with shared_evaluation() as device:  # what is started without torchrun is alone
        ...     device
        'cpu'
    """
    if not (torchrun.started_this() or dist.is_initialized()):
        yield device
        return
    ranks = Ranks(device)
    with ranks.losses_said(lambda: "nothing was written: do it again"), over_ranks.shared_batch(ranks.control):
        yield str(ranks.device)
