"""AFA metrics of SAEs over a language model and text."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, Unpack, overload

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from sae_lens import ActivationsStore
from sae_lens.saes.sae import SAE
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name, get_special_token_ids
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_afa.evals.attached import saes_detached
from sae_lens_afa.evals.cross_entropy import CrossEntropy
from sae_lens_afa.evals.metrics import MAX_EXACT_TOKENS
from sae_lens_afa.evals.result import AFAResult
from sae_lens_afa.evals.run import SAEJudge
from sae_lens_afa.loading.models import check_context, check_hook

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.HookedRootModule import HookedRootModule

DEFAULT_TOKENS = 65_536
# Tokens before the judged one that its context shows.
_CONTEXT = 12


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


@torch.no_grad()
def run_afa_evals(
    sae: SAE[Any] | Mapping[str, SAE[Any]],
    activation_store: ActivationsStore,
    model: HookedRootModule,
    *,
    tokens: int = DEFAULT_TOKENS,
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
        max_exact_tokens: As for `evaluate_activations`. Contexts too are kept of so many tokens.
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
        run_afa_evals({"a": sae_a, "b": sae_b}, ActivationsStore.from_sae(model, sae_a, dataset), model)
    """
    if tokens < 1:
        raise ValueError(f"tokens must be at least 1, got {tokens}.")
    saes: Mapping[str, SAE[Any]] = sae if isinstance(sae, Mapping) else {"sae": sae}
    if not saes:
        raise ValueError("no SAEs to judge: the mapping is empty.")
    judges = {
        name: SAEJudge(
            each, activation_scaler=activation_scaler, outlier_norm_multiple=outlier_norm_multiple,
            rescale_by_token_std=rescale_by_token_std, max_exact_tokens=max_exact_tokens, seed=seed,
        )
        for name, each in saes.items()
    }  # fmt: skip
    hooks = {name: _hook(each, activation_store) for name, each in saes.items()}
    chosen = {
        name: _Chosen(each, activation_store, model, tokens, positions, exclude_special_tokens)
        for name, each in saes.items()
    }
    losses = {
        name: CrossEntropy(
            each, model, hooks[name].name, activation_scaler, activation_store.model_kwargs, chosen[name].excluded_ids
        )
        for name, each in saes.items()
    }
    text = _Text(activation_store, tokens, max_exact_tokens)
    with saes_detached(model):
        for name, hook in hooks.items():
            check_hook(model, hook.name, saes[name].cfg.d_in, hook.head)
        check_context(model, activation_store.context_size)
        with tqdm(total=tokens, unit=" tokens", desc="AFA", disable=not progress) as bar:
            for batch in text.batches(batch_size_prompts, list(chosen.values()), bar):
                measured = text.n_seen - batch.numel()
                for loss in losses.values() if measured < cross_entropy_tokens else ():
                    loss.add(batch)
                masks = {name: each.take(batch) for name, each in chosen.items()}
                masks = {name: mask for name, mask in masks.items() if mask.any()}
                cache = _activations(model, activation_store, batch, sorted({hooks[name].name for name in masks}))
                for name, mask in masks.items():
                    hook, index = hooks[name], mask.flatten().nonzero().flatten() + measured
                    acts = cache[hook.name] if hook.head is None else cache[hook.name][:, :, hook.head]
                    judges[name].add(acts.flatten(2)[mask.to(acts.device)], index)
    results: dict[str, AFAResult] = {}
    for name, judge in judges.items():
        try:
            chosen[name].check_judged()
            results[name] = replace(text.annotate(judge.result(), model), **losses[name].figures())
        except ValueError as error:
            if not isinstance(sae, Mapping):
                raise
            raise ValueError(f"{name}: {error}") from error
    return results if isinstance(sae, Mapping) else results["sae"]


class _Hook(NamedTuple):
    name: str
    head: int | None


def _hook(sae: SAE[Any], store: ActivationsStore) -> _Hook:
    metadata = sae.cfg.metadata
    if metadata.hook_name is None:
        return _Hook(store.hook_name, store.hook_head_index)
    return _Hook(metadata.hook_name, metadata.hook_head_index)


def _activations(
    model: HookedRootModule, store: ActivationsStore, batch: Int[Tensor, "prompts context"], hook_names: list[str]
) -> Mapping[str, Tensor]:
    """The hooks' activations in one forward pass that stops after the last of them; none needs none."""
    if not hook_names:
        return {}
    stops = [extract_stop_at_layer_from_tlens_hook_name(name) for name in hook_names]
    last = None if None in stops else max(stop for stop in stops if stop is not None)
    with torch.autocast(batch.device.type, dtype=torch.bfloat16, enabled=store.autocast_lm):
        return model.run_with_cache(
            batch, names_filter=hook_names, stop_at_layer=last, prepend_bos=False, **store.model_kwargs
        )[1]


def next_prompts(store: ActivationsStore, size: int) -> Int[Tensor, "prompts context"] | None:
    """The next `size` prompts of the store's text, fewer at its end; None beyond it."""
    prompts: list[Tensor] = []
    for _ in range(size):
        try:
            # One at a time: at the end of the text the store drops a batch that it has begun.
            prompts.append(store.get_batch_tokens(1, raise_at_epoch_end=True))
        except StopIteration:
            break
    return torch.cat(prompts) if prompts else None


class _Chosen:
    """The tokens of a text that one SAE is judged on.

    Attributes:
        excluded_ids: Token ids that are left out.
    """

    def __init__(
        self,
        sae: SAE[Any],
        store: ActivationsStore,
        model: HookedRootModule,
        tokens: int,
        positions: Sequence[int] | None,
        exclude_special_tokens: bool | Sequence[int] | None,
    ) -> None:
        metadata: Any = sae.cfg.metadata
        trained_without = metadata.exclude_special_tokens or False
        self.excluded_ids = excluded_ids(
            model, trained_without if exclude_special_tokens is None else exclude_special_tokens
        )
        self._excluded = torch.tensor(self.excluded_ids, dtype=torch.long)
        self._at_positions = _position_mask(store, metadata.seqpos_slice or store.seqpos_slice, positions)
        self._tokens = tokens
        self.n_read = self.n_judged = 0

    @property
    def is_complete(self) -> bool:
        """Whether as many tokens were read as were asked for."""
        return self.n_read >= self._tokens

    def take(self, batch: Int[Tensor, "prompts context"]) -> Bool[Tensor, "prompts context"]:
        """The mask of the tokens to judge, on the CPU."""
        mask = self._at_positions.repeat(len(batch), 1)
        mask &= mask.flatten().cumsum(0).view_as(mask) <= self._tokens - self.n_read
        self.n_read += int(mask.sum())
        mask &= ~torch.isin(batch.cpu(), self._excluded)
        self.n_judged += int(mask.sum())
        return mask

    def check_judged(self) -> None:
        """Refuse to go on without any token.

        Raises:
            ValueError: saying why there is none.
        """
        if self.n_read == 0:
            raise ValueError(
                f"no tokens to judge: the text has not one prompt of {len(self._at_positions)} tokens"
                " (context_size): give a longer text, or a smaller context."
            )
        if self.n_judged == 0:
            raise ValueError(f"no tokens to judge: {self.n_read} were read, and all are special tokens.")


class _Text:
    """Reads prompts once and remembers them for the contexts of their tokens."""

    def __init__(self, store: ActivationsStore, tokens: int, max_remembered: int) -> None:
        if store.dataset is None:
            raise ValueError(
                "activation_store reads cached activations and has no token ids: give the activations to"
                " evaluate_activations instead."
            )
        self._store, self._tokens = store, tokens
        self._width = store.context_size
        self._prompts: list[NDArray[np.int32]] = []
        self._max_prompts = -(-max_remembered // self._width)
        self._n_prompts = 0

    def batches(
        self, batch_size: int | None, chosen: Sequence[_Chosen], bar: tqdm[Any]
    ) -> Iterator[Int[Tensor, "prompts context"]]:
        """Token ids, until all of `chosen` have taken as many as they are to."""
        size = batch_size or self._store.store_batch_size_prompts
        while not all(each.is_complete for each in chosen):
            batch = next_prompts(self._store, size)
            if batch is None:
                read = min(each.n_read for each in chosen)
                if read > 0:
                    warnings.warn(f"the text ended after {read} of {self._tokens} tokens.", stacklevel=3)
                return
            self._remember(batch)
            yield batch
            bar.update(min(each.n_read for each in chosen) - bar.n)

    @property
    def n_seen(self) -> int:
        """Tokens of the prompts so far, judged or not."""
        return self._n_prompts * self._width

    def _remember(self, batch: Tensor) -> None:
        if self._n_prompts < self._max_prompts:
            self._prompts.append(batch.cpu().numpy().astype(np.int32))
        self._n_prompts += len(batch)

    def annotate(self, result: AFAResult, model: HookedRootModule) -> AFAResult:
        """The result with the position, the token and the context of each token that is kept."""
        tokenizer: Any = getattr(model, "tokenizer", None)
        prompts = np.concatenate(self._prompts)

        def annotated(tokens: pd.DataFrame) -> pd.DataFrame:
            place = tokens["token_index"].to_numpy()
            prompt, position = np.divmod(place, self._width)
            columns: dict[str, Any] = {"prompt": prompt, "position": position}
            if tokenizer is not None:
                known = [prompts[p] if p < len(prompts) else prompts[0][:0] for p in prompt]
                pairs = list(zip(known, position, strict=True))
                columns["token"] = tokenizer.batch_decode([ids[i : i + 1] for ids, i in pairs])
                columns["context"] = tokenizer.batch_decode([ids[max(0, i - _CONTEXT) : i + 1] for ids, i in pairs])
            return tokens.assign(**columns)

        return result.map_tokens(annotated)


def _position_mask(
    store: ActivationsStore, seqpos_slice: Sequence[int | None], positions: Sequence[int] | None
) -> Bool[Tensor, " context"]:
    width = store.context_size
    mask = torch.zeros(width, dtype=torch.bool)
    if positions is None:
        mask[slice(*seqpos_slice)] = True
        if not mask.any():
            raise ValueError(
                f"no tokens to judge: seqpos_slice={tuple(seqpos_slice)}, on which the SAE was trained, has no position"
                f" of a prompt of {width} tokens (context_size): give positions, or longer prompts."
            )
        return mask
    if not positions or any(not -width <= position < width for position in positions):
        raise ValueError(f"positions must be within -{width} to {width - 1} (context_size), got {list(positions)}.")
    mask[torch.tensor(list(positions))] = True
    return mask


def excluded_ids(model: HookedRootModule, exclude: bool | Sequence[int]) -> list[int]:
    """Token ids that are left out: given ones, those of the model's tokenizer that are special (True), or none.

    Raises:
        ValueError: the model has no tokenizer to say which are special.
    """
    if exclude is False:
        return []
    if exclude is True:
        tokenizer: Any = getattr(model, "tokenizer", None)
        if tokenizer is None:
            raise ValueError("exclude_special_tokens=True needs a tokenizer, the model has none; give the token ids.")
        exclude = get_special_token_ids(tokenizer)
    return list(exclude)
