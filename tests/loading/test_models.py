"""Models by name or folder, and what is known of hooks and contexts before they are used."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

from sae_lens_afa.demo import model_folder
from sae_lens_afa.loading.models import check_context, check_hook, context_of, load_language_model

PROXY = "AutoModelForCausalLM"


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory):
    """A folder with a model of another architecture than GPT-2's."""
    folder = tmp_path_factory.mktemp("neox")
    tokenizer = AutoTokenizer.from_pretrained(model_folder(), local_files_only=True)
    tokenizer.save_pretrained(folder)
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64,
    )  # fmt: skip
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    return folder


def test_any_folder_is_a_model_of_transformers(other_folder):
    model = load_language_model(str(other_folder), "cpu", PROXY, hook_names=["gpt_neox.layers.0"])
    check_hook(model, "gpt_neox.layers.0", 16)
    assert context_of(model) == 64
    with pytest.raises(ValueError, match="context_size is 65, but the model reads at most 64 tokens: give 64"):
        check_context(model, 65)


def test_a_folder_of_another_architecture_is_no_hooked_transformer(other_folder):
    with pytest.raises(ValueError, match=r"^model .* holds a model of type 'gpt_neox'.*AutoModelForCausalLM"):
        load_language_model(str(other_folder), "cpu")


def test_an_unknown_module_lists_near_ones():
    with pytest.raises(ValueError, match=r"no hook 'transformer\.h\.22'; did you mean .*transformer\.h\.2"):
        load_language_model(str(model_folder()), "cpu", PROXY, hook_names=["transformer.h.22"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/no/such/folder", "/no/such/folder is not a folder; give a model's folder or its name"),
        ("./nosuch", "./nosuch is not a folder"),
        ("gpt2x", "'gpt2x' cannot be loaded.*near matches: .*gpt2"),
        ("tests", "tests has no config.json"),
    ],
)
def test_names_that_will_not_do_are_short(name, message):
    with pytest.raises((ValueError, OSError), match=f"model_name {message}") as raised:
        load_language_model(name, "cpu", what="model_name")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    ("hook", "switch"),
    [
        ("blocks.1.attn.hook_result", "use_attn_result"),
        ("blocks.1.hook_attn_in", "use_attn_in"),
        ("blocks.1.hook_q_input", "use_split_qkv_input"),
        ("blocks.1.hook_mlp_in", "use_hook_mlp_in"),
    ],
)
def test_hooks_that_are_there_and_not_computed_are_told(model, hook, switch):
    with pytest.raises(ValueError, match=f"has the hook '{hook}' but does not compute it: it does so with {switch}"):
        check_hook(model, hook, 192)


def test_every_hook_of_the_model_is_taken_or_refused_in_one_line(model):
    refused = {}
    for hook in (name for name in model.hook_dict if not name.startswith("blocks.") or name.startswith("blocks.1.")):
        try:
            check_hook(model, hook, 192)
        except ValueError as error:
            refused[hook] = str(error)
    assert not any("\n" in message for message in refused.values())
    assert "blocks.1.hook_resid_pre" not in refused
    assert "blocks.1.attn.hook_result" in refused


def test_an_sae_on_all_heads_has_to_join_them(model):
    hook = "blocks.1.attn.hook_z"
    check_hook(model, hook, 192, reshaping="hook_z")
    check_hook(model, hook, 32, head_index=1, reshaping="none")
    with pytest.raises(ValueError, match=r"reshape_activations: .*set reshape_activations='hook_z'"):
        check_hook(model, hook, 192, reshaping="none")


def test_the_bundled_model_reads_128_tokens(model):
    check_context(model, 128)
    with pytest.raises(ValueError, match=r"^window is 4096, but the model reads at most 128"):
        check_context(model, 4096, what="window")
    assert context_of(torch.nn.Linear(1, 1)) is None
