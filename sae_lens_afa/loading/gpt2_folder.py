"""GPT-2 models from a local folder: TransformerLens loads by names that it knows and asks the Hub about them."""

from __future__ import annotations

from pathlib import Path

import torch
from sae_lens import HookedSAETransformer
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions.gpt2 import convert_gpt2_weights
from transformers import AutoConfig, AutoTokenizer, GPT2LMHeadModel


def load_gpt2_folder(folder: str | Path, device: str | torch.device = "cpu") -> HookedSAETransformer:
    """Load any model of GPT-2's architecture from a Hugging Face model folder, in float32 and without a network.

    Weights are not processed (no folding, no centring), as with TransformerLens'
    `from_pretrained_no_processing`.

    Args:
        folder: config.json, weights and tokenizer files, as `save_pretrained` writes them.
        device: Where the model is to live.

    Returns:
        A `HookedTransformer` with GPT-2's hook points (`blocks.6.hook_resid_pre`, ...), to which SAEs can be
        attached (`run_with_saes`).

    Raises:
        FileNotFoundError: `folder` has no config.json.
        ValueError: it holds a model of another architecture.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json: it must be a Hugging Face model folder.")
    hf = AutoConfig.from_pretrained(folder, local_files_only=True)
    if hf.model_type != "gpt2":
        raise ValueError(
            f"{folder} holds a model of type {hf.model_type!r}; only 'gpt2' is read here as a HookedTransformer, any"
            " with model_class_name='AutoModelForCausalLM'."
        )
    hf_model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    cfg = HookedTransformerConfig(
        model_name=folder.name,
        n_layers=hf.n_layer,
        d_model=hf.n_embd,
        n_heads=hf.n_head,
        d_head=hf.n_embd // hf.n_head,
        d_mlp=hf.n_inner or 4 * hf.n_embd,
        d_vocab=hf.vocab_size,
        n_ctx=hf.n_positions,
        act_fn=hf.activation_function,
        eps=hf.layer_norm_epsilon,
        normalization_type="LN",
        positional_embedding_type="standard",
        original_architecture="GPT2LMHeadModel",
        init_weights=False,
        device=str(device),
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = HookedSAETransformer(cfg, tokenizer=tokenizer, move_to_device=False)
    model.load_and_process_state_dict(
        convert_gpt2_weights(hf_model, cfg),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    model.to(device, print_details=False)
    return model.eval()
