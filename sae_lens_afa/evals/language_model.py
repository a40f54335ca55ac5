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

from sae_lens_afa.evals.cross_entropy import CrossEntropy
from sae_lens_afa.evals.metrics import MAX_EXACT_TOKENS
from sae_lens_afa.evals.result import AFAResult
from sae_lens_afa.evals.run import SAEJudge
from sae_lens_afa.loading.models import check_hook

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
    exclude_special_tokens: bool | Sequence[int]
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
    exclude_special_tokens: bool | Sequence[int] = False,
    positions: Sequence[int] | None = None,
    outlier_norm_multiple: float | None = None,
    rescale_by_token_std: bool = False,
    activation_scaler: ActivationScaler | None = None,
    max_exact_tokens: int = MAX_EXACT_TOKENS,
    seed: int = 0,
    progress: bool = True,
) -> AFAResult | dict[str, AFAResult]:
    """Judge SAEs by AFA on a model's activations; several SAEs share each forward pass of the model.

    Args:
        sae: An SAE, or several by name; each is fed from its own `cfg.metadata.hook_name` (and `hook_head_index`).
            An SAE that names no hook is fed from the store's.
        activation_store: Where token ids come from; also its `model_kwargs`, `seqpos_slice` and `autocast_lm`.
        model: The model whose activations the SAEs code.
        tokens: Tokens to read, before any are left out. The text is read once: a shorter one gives fewer tokens
            and a warning.
        batch_size_prompts: Prompts per forward pass; the store's if None.
        cross_entropy_tokens: Of the tokens read, on how many to measure the model's cross-entropy with each SAE in
            place (whole batches, all positions; three forward passes for each SAE).
        exclude_special_tokens: Leave out the tokenizer's special tokens (True), or these token ids.
        positions: Judge only these positions of a prompt, negative ones from its end ([-1]: the last token, as
            in the paper); the store's `seqpos_slice` if None.
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
    for name, hook in hooks.items():
        check_hook(model, hook.name, saes[name].cfg.d_in, hook.head)
    losses = {
        name: CrossEntropy(each, model, hooks[name].name, activation_scaler, activation_store.model_kwargs)
        for name, each in saes.items()
    }
    text = _Text(activation_store, model, tokens, positions, exclude_special_tokens, max_exact_tokens)
    with tqdm(total=tokens, unit=" tokens", desc="AFA", disable=not progress) as bar:
        for batch, mask, index in text.batches(batch_size_prompts, bar):
            measured = text.n_seen - batch.numel()
            for loss in losses.values() if measured < cross_entropy_tokens else ():
                loss.add(batch)
            cache = _activations(model, activation_store, batch, sorted({hook.name for hook in hooks.values()}))
            for name, hook in hooks.items():
                acts = cache[hook.name] if hook.head is None else cache[hook.name][:, :, hook.head]
                judges[name].add(acts.flatten(2)[mask.to(acts.device)], index)
    if text.n_judged == 0:
        raise ValueError(
            f"no tokens to judge: {text.n_read} were read, and all are special tokens or at other positions."
        )
    results = {
        name: replace(text.annotate(judge.result(), model), **losses[name].figures()) for name, judge in judges.items()
    }
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
    """The hooks' activations in one forward pass that stops after the last of them."""
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


class _Text:
    """Reads prompts once, says which of their tokens are to be judged, and remembers them for their contexts."""

    def __init__(
        self,
        store: ActivationsStore,
        model: HookedRootModule,
        tokens: int,
        positions: Sequence[int] | None,
        exclude_special_tokens: bool | Sequence[int],
        max_remembered: int,
    ) -> None:
        if store.dataset is None:
            raise ValueError(
                "activation_store reads cached activations and has no token ids: give the activations to"
                " evaluate_activations instead."
            )
        self._store, self._tokens = store, tokens
        self._width = store.context_size
        self._judged = _position_mask(store, positions)
        self._excluded = _excluded_ids(model, exclude_special_tokens)
        self._prompts: list[NDArray[np.int32]] = []
        self._max_prompts = -(-max_remembered // self._width)
        self.n_read = self.n_judged = self._n_prompts = 0

    def batches(self, batch_size: int | None, bar: tqdm[Any]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Token ids [prompts, context], the mask of those to judge, and their places in the text."""
        size = batch_size or self._store.store_batch_size_prompts
        while self.n_read < self._tokens:
            batch = next_prompts(self._store, size)
            if batch is None:
                warnings.warn(f"the text ended after {self.n_read} of {self._tokens} tokens.", stacklevel=3)
                return
            mask = self._judged.repeat(len(batch), 1)
            mask &= mask.flatten().cumsum(0).view_as(mask) <= self._tokens - self.n_read
            count = int(mask.sum())
            if self._excluded is not None:
                mask &= ~torch.isin(batch.cpu(), self._excluded)
            index = torch.arange(mask.numel())[mask.flatten()] + self._n_prompts * self._width
            self._remember(batch)
            self.n_read += count
            self.n_judged += len(index)
            if len(index):
                yield batch, mask, index
            bar.update(count)

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


def _position_mask(store: ActivationsStore, positions: Sequence[int] | None) -> Bool[Tensor, " context"]:
    width = store.context_size
    mask = torch.zeros(width, dtype=torch.bool)
    if positions is None:
        mask[slice(*store.seqpos_slice)] = True
        return mask
    if not positions or any(not -width <= position < width for position in positions):
        raise ValueError(f"positions must be within -{width} to {width - 1} (context_size), got {list(positions)}.")
    mask[torch.tensor(list(positions))] = True
    return mask


def _excluded_ids(model: HookedRootModule, exclude: bool | Sequence[int]) -> Int[Tensor, " ids"] | None:
    if exclude is False:
        return None
    if exclude is True:
        tokenizer: Any = getattr(model, "tokenizer", None)
        if tokenizer is None:
            raise ValueError("exclude_special_tokens=True needs a tokenizer, the model has none; give the token ids.")
        exclude = get_special_token_ids(tokenizer)
    return torch.tensor(list(exclude), dtype=torch.long)
