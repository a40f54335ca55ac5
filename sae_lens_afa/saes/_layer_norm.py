"""layer_norm that remembers: mean and standard deviation of each token stay known after its code is decoded.

SAELens keeps them on the SAE from encode to decode and deletes them there, so that a second decode fails and a decode
after another encode takes the other batch's. Here a code that was encoded keeps its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from sae_lens.saes.sae import SAE
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary
from typing_extensions import override

from sae_lens_afa import _transforms
from sae_lens_afa.functional import check_last_axis

_EPSILON = 1e-5  # SAELens'


class TokenStatistics(NamedTuple):
    """Mean and standard deviation that layer_norm took from each token of a batch."""

    mean: Float[Tensor, "*tokens 1"]
    std: Float[Tensor, "*tokens 1"]


class _Encoded(threading.local):
    """Statistics of the last batch, and of every code that somebody still holds; each thread has its own.

    A copy of an SAE starts without.
    """

    def __init__(self) -> None:
        self.last: TokenStatistics | None = None
        self.in_use: TokenStatistics | None = None
        self.of_code = WeakTensorKeyDictionary()

    def __deepcopy__(self, memo: Any) -> _Encoded:
        return _Encoded()

    def __reduce__(self) -> tuple[type[_Encoded], tuple[()]]:
        return _Encoded, ()


def _usable(statistics: TokenStatistics, feature_acts: Tensor) -> TokenStatistics:
    """Return the statistics as they are to be decoded with: without their graph where the code has none.

    The graph of a code that was detached may be freed; what was made in inference mode cannot be saved for backward.
    A transform of torch.func differentiates what has no graph that could be seen here.
    """
    if feature_acts.grad_fn is None and not _transforms.at_work():
        statistics = TokenStatistics(*(t.detach() for t in statistics))
    if not torch.is_inference_mode_enabled() and statistics.std.is_inference():
        statistics = TokenStatistics(*(t.clone() for t in statistics))
    return statistics


class RememberedLayerNorm(SAE[Any]):
    """An SAE whose codes can be decoded any number of times under layer_norm; a base beside SAELens' own.

    The statistics of the last batch stay on the SAE until the next, with their gradient where the input has one.
    """

    @override
    def _setup_activation_normalization(self) -> None:
        super()._setup_activation_normalization()
        self._encoded = _Encoded()
        if self.cfg.normalize_activations == "layer_norm":
            # Bound methods, which a deep copy binds anew; SAELens' closures go on writing to the original.
            self.run_time_activation_norm_fn_in = self._layer_norm_in
            self.run_time_activation_norm_fn_out = self._layer_norm_out

    @property
    def ln_mu(self) -> Tensor:
        """Means of the last batch's tokens, [..., 1], under the name that SAELens gives them."""
        return self._last_statistics().mean

    @property
    def ln_std(self) -> Tensor:
        """Standard deviations of the last batch's tokens, [..., 1]."""
        return self._last_statistics().std

    def _last_statistics(self) -> TokenStatistics:
        if self._encoded.last is None:
            raise AttributeError("nothing was encoded under layer_norm yet")
        return self._encoded.last

    def remember_code(self, feature_acts: Tensor) -> None:
        """Note that these are the codes of the batch that was normalised last."""
        if self._encoded.last is not None and not torch.compiler.is_compiling():
            self._encoded.of_code[feature_acts] = self._encoded.last

    def decode_with_own_statistics(self, feature_acts: Tensor, decode: Callable[[Tensor], Tensor]) -> Tensor:
        """Decode these codes by `decode`, with the statistics of the tokens that they were encoded from.

        A code that an encode returned has its own, also after an edit in place and after other batches were encoded.
        Anything else, such as an edited copy, has those of the last batch if it has as many tokens. A compiled decode
        knows the last batch alone.

        Raises:
            ValueError: the last axis is not d_sae; or under layer_norm, nothing was encoded, or the last batch had
                another shape.
        """
        check_last_axis("feature_acts", feature_acts, "d_sae", self.cfg.d_sae)
        if self.cfg.normalize_activations != "layer_norm":
            return decode(feature_acts)
        encoded, own = self._encoded, None
        if not torch.compiler.is_compiling():
            own = encoded.of_code.get(feature_acts)
        found, leading = own or encoded.last, list(feature_acts.shape[:-1])
        if found is None or list(found.std.shape[:-1]) != leading:
            seen = "none was encoded yet" if found is None else f"the last one encoded was {list(found.std.shape[:-1])}"
            raise ValueError(
                f"cannot decode a code of shape {list(feature_acts.shape)}: under normalize_activations='layer_norm'"
                f" this needs the mean and standard deviation of each token of its batch {leading}, and {seen}."
                " Encode these tokens first and decode that batch, or train with normalize_activations='none'."
            )
        if torch.compiler.is_compiling():
            return decode(feature_acts)
        encoded.in_use = _usable(found, feature_acts)
        try:
            return decode(feature_acts)
        finally:
            encoded.in_use = None

    def _layer_norm_in(self, x: Float[Tensor, "*tokens d_in"]) -> Float[Tensor, "*tokens d_in"]:
        mean = x.mean(dim=-1, keepdim=True)
        x = x - mean
        std = x.std(dim=-1, keepdim=True)
        self._encoded.last = TokenStatistics(mean, std)
        return x / (std + _EPSILON)

    def _layer_norm_out(self, x: Float[Tensor, "*tokens d_in"]) -> Float[Tensor, "*tokens d_in"]:
        used = self._encoded.in_use or self._last_statistics()
        return x * used.std + used.mean
