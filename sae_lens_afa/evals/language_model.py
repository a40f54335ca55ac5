"""SAEs judged by AFA on a language model and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, overload

import torch
from sae_lens import ActivationsStore
from sae_lens.saes.sae import SAE
from sae_lens.training.activation_scaler import ActivationScaler

from sae_lens_afa.defaults import EVAL_TOKENS
from sae_lens_afa.evals.attached import saes_detached
from sae_lens_afa.evals.cross_entropy import CrossEntropy
from sae_lens_afa.evals.hook_reader import HookReader, hook_activations
from sae_lens_afa.evals.judge import SAEJudge
from sae_lens_afa.evals.judged_tokens import JudgedTokens
from sae_lens_afa.evals.metrics import MAX_EXACT_TOKENS
from sae_lens_afa.evals.prompts import PromptBatch, PromptReader
from sae_lens_afa.evals.result import AFAResult
from sae_lens_afa.loading.models import check_context

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule


class LanguageModelOptions(TypedDict, total=False):
    """The options of `run_afa_evals`."""

    tokens: int
    batch_size_prompts: int | None
    cross_entropy_tokens: int
    exclude_special_tokens: bool | Sequence[int] | None
    positions: Sequence[int] | None
    outlier_norm_multiple: float | None
    rescale_by_token_std: bool
    activation_scaler: ActivationScaler | None
    max_exact_tokens: int
    seed: int
    progress: bool


@overload
def run_afa_evals(
    sae: SAE[Any],
    activation_store: ActivationsStore,
    model: HookedRootModule,
    **options: Unpack[LanguageModelOptions],
) -> AFAResult: ...


@overload
def run_afa_evals(
    sae: Mapping[str, SAE[Any]],
    activation_store: ActivationsStore,
    model: HookedRootModule,
    **options: Unpack[LanguageModelOptions],
) -> dict[str, AFAResult]: ...


def run_afa_evals(
    sae: SAE[Any] | Mapping[str, SAE[Any]],
    activation_store: ActivationsStore,
    model: HookedRootModule,
    *,
    tokens: int = EVAL_TOKENS,
    batch_size_prompts: int | None = None,
    cross_entropy_tokens: int = 0,
    exclude_special_tokens: bool | Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    outlier_norm_multiple: float | None = None,
    rescale_by_token_std: bool = False,
    activation_scaler: ActivationScaler | None = None,
    max_exact_tokens: int = MAX_EXACT_TOKENS,
    seed: int = 0,
    progress: bool = True,
) -> AFAResult | dict[str, AFAResult]:
    """Judge SAEs by AFA on a model's activations; several SAEs share each forward pass of the model.

    Each SAE is judged on tokens like those that it was trained on, as its `cfg.metadata` says: at its hook (and
    `hook_head_index`), without the tokens of `exclude_special_tokens`, at the positions of `seqpos_slice`. SAEs that
    are attached to the model are taken off for the time of the evaluation.

    Within `distributed.shared_evaluation` the prompts are shared out among the ranks, all of which get the result.

    Args:
        sae: An SAE, or several by name. One that names no hook is fed from the store's.
        activation_store: Where token ids come from; also its `model_kwargs` and `autocast_lm`.
        model: The model whose activations the SAEs code.
        tokens: Tokens to read for each SAE, before special ones are left out. The text is read once: a shorter one
            gives fewer tokens and a warning.
        batch_size_prompts: Prompts per forward pass; the store's if None.
        cross_entropy_tokens: Of the tokens read, on how many to measure the model's cross-entropy with each SAE in
            place (whole batches, all positions; three forward passes for each SAE). Tokens that are left out keep
            their activations.
        exclude_special_tokens: Leave out the tokenizer's special tokens (True), these token ids, or none (False).
            None: as each SAE was trained; none where its metadata does not say.
        positions: Judge only these positions of a prompt, negative ones from its end ([-1]: the last token, as
            in the paper). None: those that each SAE was trained on; the store's `seqpos_slice` where its metadata does
            not say.
        outlier_norm_multiple: As for `evaluate_activations`.
        rescale_by_token_std: As for `evaluate_activations`.
        activation_scaler: As for `evaluate_activations`, for all SAEs.
        max_exact_tokens: As for `evaluate_activations`; contexts are kept of so many tokens, too.
        seed: As for `evaluate_activations`.
        progress: Show a progress bar.

    Returns:
        A result, or one per name. Their `tokens` have the columns `token`, `position` and `context` too, if the
        model has a tokenizer.

    Raises:
        TypeError: a transcoder or a temporal SAE.
        ValueError: a hook that the model does not have or that is not d_in wide, positions outside of the
            context, no tokens to judge.

    Example:
        >>> import sae_lens_afa as afa
        >>> from datasets import Dataset
        >>> from sae_lens import ActivationsStore
        >>> from sae_lens.saes.sae import SAEMetadata
        >>> model, text = afa.demo.load_model(), Dataset.from_dict({"text": afa.demo.load_text().held_out[:2]})
        >>> about = SAEMetadata(hook_name="blocks.2.hook_resid_pre", context_size=32, prepend_bos=True)
        >>> sae = afa.TopAFASAE(afa.TopAFASAEConfig(d_in=192, d_sae=256, metadata=about))
        >>> store = ActivationsStore.from_sae(model, sae, text, streaming=False, store_batch_size_prompts=4)
        >>> results = afa.run_afa_evals({"mine": sae}, store, model, tokens=128, progress=False)
        >>> results["mine"].n_tokens
        128
    """
    if tokens < 1:
        raise ValueError(f"tokens must be at least 1, got {tokens}.")
    saes: Mapping[str, SAE[Any]] = sae if isinstance(sae, Mapping) else {"sae": sae}
    if not saes:
        raise ValueError("no SAEs to judge: the mapping is empty.")
    candidates = {
        name: _Candidate(
            each,
            SAEJudge(
                each, activation_scaler=activation_scaler, outlier_norm_multiple=outlier_norm_multiple,
                rescale_by_token_std=rescale_by_token_std, max_exact_tokens=max_exact_tokens, seed=seed,
            ),
            JudgedTokens(each, activation_store, model, tokens, positions, exclude_special_tokens),
            activation_store, model, activation_scaler,
        )
        for name, each in saes.items()
    }  # fmt: skip
    reader = PromptReader(activation_store, tokens, max_exact_tokens)
    with torch.no_grad(), saes_detached(model):
        for candidate in candidates.values():
            candidate.hook.check()
        check_context(model, activation_store.context_size)
        judged = [candidate.tokens for candidate in candidates.values()]
        for batch in reader.batches(batch_size_prompts, judged, "AFA", progress=progress):
            measures_loss = len(batch.ids) > 0 and batch.n_before < cross_entropy_tokens
            for candidate in candidates.values() if measures_loss else ():
                candidate.loss.add(batch.ids)
            _judge(batch, list(candidates.values()), model, activation_store)
    results: dict[str, AFAResult] = {}
    for name, candidate in candidates.items():
        try:
            results[name] = reader.annotate(candidate.result(), model)
        except ValueError as error:
            if not isinstance(sae, Mapping):
                raise
            raise ValueError(f"{name}: {error}") from error
    return results if isinstance(sae, Mapping) else results["sae"]


class _Candidate:
    """One of the SAEs that share an evaluation: its hook, the tokens it is judged on, and its metrics so far."""

    def __init__(
        self,
        sae: SAE[Any],
        judge: SAEJudge,
        tokens: JudgedTokens,
        store: ActivationsStore,
        model: HookedRootModule,
        activation_scaler: ActivationScaler | None,
    ) -> None:
        self.sae, self.judge, self.tokens = sae, judge, tokens
        self.hook = HookReader(sae, store, model)
        self.loss = CrossEntropy(sae, model, self.hook.name, activation_scaler, store.model_kwargs, tokens.excluded_ids)

    def result(self) -> AFAResult:
        self.tokens.check_judged()
        self.judge.join_ranks()
        self.loss.join_ranks()
        return self.judge.result().with_values(self.loss.metrics())


def _judge(
    batch: PromptBatch, candidates: Sequence[_Candidate], model: HookedRootModule, store: ActivationsStore
) -> None:
    """Judge each SAE on its tokens of some prompts, all in one forward pass of the model."""
    masks = [(candidate, mask) for candidate, mask in zip(candidates, batch.masks, strict=True) if mask.any()]
    cache = hook_activations(model, store, batch.ids, sorted({candidate.hook.name for candidate, _ in masks}))
    for candidate, mask in masks:
        index = mask.flatten().nonzero().flatten() + batch.n_before
        candidate.judge.add(candidate.hook.rows(cache, mask), index)
    for candidate in candidates:
        candidate.judge.settle(candidate.tokens.n_judged)
