"""Inference form of an SAE on the same weights."""

from __future__ import annotations

import warnings
from copy import deepcopy
from typing import Any

from sae_lens.registry import get_sae_class
from sae_lens.saes.sae import SAE, TrainingSAE
from sae_lens.util import dtype_to_str


def inference_view(sae: SAE[Any]) -> SAE[Any]:
    """Return the SAE as it would be saved for inference and loaded again, but on the same tensors: for reading only.

    It has its own configuration and hooks, and takes [tokens, d_in] whatever the SAE's reshaping.
    """
    state = sae.state_dict()
    if isinstance(sae, TrainingSAE):
        config = sae.cfg.get_inference_sae_cfg_dict()
        sae.process_state_dict_for_saving_inference(state)
    else:
        config = sae.cfg.to_dict()
        sae.process_state_dict_for_saving(state)
    sae_class, config_class = get_sae_class(config["architecture"])
    config = {**deepcopy(config), "device": "meta", "dtype": dtype_to_str(sae.W_enc.dtype)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SAELens says of every new SAE how its model is best loaded
        view = sae_class(config_class.from_dict(config))
    view.process_state_dict_for_loading(state)
    view.load_state_dict(state, assign=True)
    view.to(device=sae.W_enc.device)
    view.requires_grad_(False)
    view.turn_off_forward_pass_hook_z_reshaping()
    return view
