"""The processes of a run: which one this is, what they tell each other, and that one of them has died."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from sae_lens_afa import over_ranks, torchrun

_Value = TypeVar("_Value")
# Rank 0 evaluates and saves while the others wait for its next batch.
_PATIENCE = timedelta(hours=1)
# Words by which a RuntimeError tells that it is of an operation among ranks, and characters of it that are said.
_SIGNS = ("gloo", "NCCL", "Connection reset", "Connection closed", "Timed out waiting")
_SAID = 80


class RankLostError(RuntimeError):
    """End of a run because another of its processes has died or no longer answers.

    Args:
        said: What torch says.
        left: What there is of the run, and how to go on.

    Example:
        >>> from sae_lens_afa.distributed.ranks import RankLostError
        >>> print(RankLostError("connection closed", "nothing was written: do it again"))  # doctest: +ELLIPSIS
        another rank has died or no longer answers (connection closed), so this one stops. ... nothing was written: ...
    """

    def __init__(self, said: str, left: str) -> None:
        super().__init__(
            f"another rank has died or no longer answers ({said[:_SAID]}), so this one stops. Look for the other"
            f" rank's own error; {left}."
        )


class Ranks:
    """The ranks of a run, as this one sees them; a process that was not started by torchrun is the only one.

    Args:
        device: The run's device; "cuda" becomes that of this process.

    Attributes:
        rank: Number of this process, from 0.
        size: How many there are.
        device: Its own device.
        group: Through which tensors on the device go (nccl, or gloo on a CPU).
        control: Through which words go that no device needs to wait for (gloo).
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        if device == "cuda":
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(self.device)
        if not dist.is_initialized():
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=_PATIENCE, **_meeting_place())
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.group = dist.group.WORLD
        self.control: Any = dist.new_group(backend="gloo", timeout=_PATIENCE)

    @property
    def is_first(self) -> bool:
        """True for the rank that reads text, logs, evaluates and saves."""
        return self.rank == 0

    @contextmanager
    def losses_said(self, left: Callable[[], str]) -> Generator[None]:
        """Say that a rank was lost, where an operation among ranks fails, and what is left of the run.

        Raises:
            RankLostError: in place of what torch says.
        """
        try:
            yield
        except RuntimeError as error:
            said = (str(error).splitlines() or [""])[0].rpartition("] ")[2]
            if isinstance(error, dist.DistError) or any(word in str(error) for word in _SIGNS):
                raise RankLostError(said, left()) from error
            raise

    # ---- words

    def any_of(self, mine: bool) -> bool:
        """Return whether it is true of any rank."""
        word = torch.tensor(int(mine))
        dist.all_reduce(word, op=dist.ReduceOp.MAX, group=self.control)
        return bool(word)

    def agreed(self, mine: _Value) -> _Value:
        """Return rank 0's value."""
        with over_ranks.shared_batch(self.control):
            return over_ranks.from_first(lambda: mine)

    def wait(self) -> None:
        """Wait until all are here."""
        dist.barrier(group=self.control)

    # ---- tensors

    def longest_share_of(self, n: int) -> int:
        """Return how many of n items the first rank takes."""
        return -(-n // self.size)

    def share_of(self, n: int) -> slice:
        """Return which of n items this rank takes; the last ranks' shares may be smaller, or empty."""
        share = self.longest_share_of(n)
        return slice(min(n, self.rank * share), min(n, (self.rank + 1) * share))

    def gathered(self, rows: Tensor) -> Tensor:
        """Return the rows [n, ...] of all ranks in their order, all of one length, on the device that they are on."""
        with over_ranks.shared_batch(self.group):
            return over_ranks.gathered(rows.to(self.device)).to(rows.device)

    def from_first(self, tensor: Tensor) -> Tensor:
        """Return rank 0's tensor, of the shape and dtype of this one."""
        there = tensor.to(self.device).contiguous()
        dist.broadcast(there, src=0, group=self.group)
        return there.to(tensor.device)


def _meeting_place() -> dict[str, Any]:
    """Return where this process meets the others, as arguments for torch."""
    env, classes = os.environ, cast(Any, dist)
    if not torchrun.started_this():
        return {"store": classes.HashStore(), "rank": 0, "world_size": 1}
    if env.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}
    # torchrun's own store outlives a restart, and with it the addresses of processes that are gone.
    store = classes.TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), is_master=False, timeout=_PATIENCE)
    attempt = f"attempt {env.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    return {
        "store": classes.PrefixStore(attempt, store), "rank": int(env["RANK"]), "world_size": int(env["WORLD_SIZE"]),
    }  # fmt: skip
