"""A training step on a batch that ranks share out: each takes its tokens, and gradients are averaged."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from sae_lens.saes.batchtopk_sae import BatchTopK, BatchTopKTrainingSAE
from sae_lens.saes.sae import TrainingSAE, TrainStepInput, TrainStepOutput
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor, nn
from typing_extensions import override

from sae_lens_afa import over_ranks
from sae_lens_afa.distributed.ranks import Ranks
from sae_lens_afa.saes._matching import mutual_choice

# Steps between looks whether all ranks still have the same weights.
_EVERY = 500


class ReducedStep:
    """The step of SAELens' trainer, with statistics and gradients of all ranks; set as an attribute of that trainer.

    Args:
        trainer: SAELens' trainer.
        ranks: The ranks.
    """

    def __init__(self, trainer: SAETrainer[Any, Any], ranks: Ranks) -> None:
        self._trainer, self._ranks = trainer, ranks
        trainer.sae.train()  # hooks that change a gradient, as that of unit norm, come before those that average it
        self._gradients = AveragedGradients(trainer.sae, ranks)
        self._take_back = select_from_whole_batch(trainer.sae)
        trainer._train_step = self  # pyright: ignore[reportPrivateUsage]  (the one place where a step is made)

    def __call__(self, sae: TrainingSAE[Any], sae_in: Tensor) -> TrainStepOutput:
        """Take a step on a batch [tokens, d_in] that all ranks have."""
        with over_ranks.shared_batch(self._ranks.group):
            return self._step(sae, sae_in[self._ranks.share_of(len(sae_in))])

    def _step(self, sae: TrainingSAE[Any], sae_in: Tensor) -> TrainStepOutput:
        trainer = self._trainer
        sae.train()
        with trainer.autocast_if_enabled:
            output = sae.training_forward_pass(
                step_input=TrainStepInput(
                    sae_in=sae_in,
                    dead_neuron_mask=trainer.dead_neurons,
                    coefficients=trainer.get_coefficients(),
                    n_training_steps=trainer.n_training_steps,
                    is_logging_step=trainer._is_logging_step(),  # pyright: ignore[reportPrivateUsage]
                )
            )
            self._count(output.feature_acts)
        output.loss.backward()
        self._gradients.wait()
        nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        trainer.lr_scheduler.step()
        for scheduler in trainer.coefficient_schedulers.values():
            scheduler.step()
        self._average_losses(output)
        if trainer.n_training_steps % _EVERY == 0:
            self._check_in_step()
        return output

    def close(self) -> None:
        """Give the SAE back as one that trains alone."""
        self._gradients.close()
        self._take_back()

    @torch.no_grad()
    def _check_in_step(self) -> None:
        """Raise RuntimeError unless all ranks have the same weights."""
        total = torch.stack([p.double().sum() for p in self._trainer.sae.parameters()]).sum()
        if bool(over_ranks.largest(total) > -over_ranks.largest(-total)):  # not of NaN, which is another matter
            raise RuntimeError(
                f"the ranks' weights are no longer the same after step {self._trainer.n_training_steps}: the SAE draws"
                " random numbers, or keeps statistics, that differ by rank. Nothing of it is saved."
            )

    @torch.no_grad()
    def _count(self, feature_acts: Tensor) -> None:
        """Take the batch into the trainer's counts of what fired."""
        trainer = self._trainer
        if feature_acts.is_sparse:
            fired = feature_acts.bool().float().sum(0).to_dense()
        else:
            fired = torch.count_nonzero(feature_acts.flatten(0, -2), dim=0).float()
        fired = over_ranks.summed(fired)
        trainer.n_forward_passes_since_fired += 1
        trainer.n_forward_passes_since_fired[fired > 0] = 0
        trainer.act_freq_scores += fired
        trainer.n_frac_active_samples += trainer.cfg.train_batch_size_samples

    @torch.no_grad()
    def _average_losses(self, output: TrainStepOutput) -> None:
        """Put the means over ranks in place of a rank's own losses."""
        values = torch.stack([value.detach().double() for value in (output.loss, *output.losses.values())])
        output.loss, *rest = over_ranks.averaged(values).unbind()
        output.losses = dict(zip(output.losses, rest, strict=True))


class AveragedGradients:
    """Averages gradients over ranks, each as soon as the backward pass has it and all before it are under way.

    One operation for a parameter: an SAE has four or so, and two of them are all but all of it. They come in one fixed
    order, in which all ranks must ask for them, whatever the order in which a rank's backward pass ends.
    """

    def __init__(self, sae: TrainingSAE[Any], ranks: Ranks) -> None:
        self._ranks = ranks
        self._parameters = [p for p in reversed(list(sae.parameters())) if p.requires_grad]
        self._ready: set[int] = set()
        self._under_way: list[tuple[Tensor, Any]] = []
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._is_there, i))
            for i, parameter in enumerate(self._parameters)
        ]

    def close(self) -> None:
        """Leave the gradients to each rank."""
        for hook in self._hooks:
            hook.remove()

    def _is_there(self, i: int, _: Tensor) -> None:
        self._ready.add(i)
        while len(self._under_way) in self._ready:
            self._start_next()

    def _start_next(self) -> None:
        parameter = self._parameters[len(self._under_way)]
        if parameter.grad is None:  # on this rank; another may have one
            parameter.grad = torch.zeros_like(parameter)
        operation = dist.all_reduce(parameter.grad, group=self._ranks.group, async_op=True)
        self._under_way.append((parameter.grad, operation))

    def wait(self) -> None:
        """Wait for all of them."""
        while len(self._under_way) < len(self._parameters):
            self._start_next()
        for gradient, operation in self._under_way:
            operation.wait()
            gradient /= self._ranks.size
        self._ready.clear()
        self._under_way.clear()


def select_from_whole_batch(sae: TrainingSAE[Any]) -> Callable[[], None]:
    """Let SAELens' BatchTopK, of which a batch shares out k features per token, look at the tokens of all ranks.

    Returns:
        Makes it undone.
    """
    selects: Any = sae.activation_fn
    own = vars(sae)
    if type(selects) is BatchTopK:
        sae.activation_fn = WholeBatchTopK(selects.k)
    saelens_own = BatchTopKTrainingSAE.update_topk_threshold
    if isinstance(sae, BatchTopKTrainingSAE) and type(sae).update_topk_threshold is saelens_own:
        update = sae.update_topk_threshold

        def update_by_all(acts_topk: Tensor) -> None:
            update(_with_least_of_all(acts_topk))

        sae.update_topk_threshold = update_by_all

    def take_back() -> None:
        sae.activation_fn = selects
        own.pop("update_topk_threshold", None)

    return take_back


class WholeBatchTopK(nn.Module):
    """SAELens' `BatchTopK` over the tokens of all ranks."""

    def __init__(self, k: float) -> None:
        super().__init__()
        self.k = k

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Return pre-activations [..., d_sae] with all but the batch's k per token at 0."""
        return mutual_choice(x.relu(), int(self.k * over_ranks.n_tokens(x)))[0]


def _with_least_of_all(acts: Tensor) -> Tensor:
    """Return the least positive activation on any rank, [1], or 0: all that SAELens' threshold looks at."""
    least = torch.where(acts > 0, acts.detach(), torch.inf).amin()
    least = -over_ranks.largest(-least)
    return torch.where(least.isinf(), 0, least).reshape(1)
