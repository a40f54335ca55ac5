"""A language model and its text as a stream of standardised activations, on SAELens' multi-SAE runner."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasets import load_dataset
from sae_lens.config import LoggingConfig
from sae_lens.multi_sae_training_runner import MultiSAETrainingRunner, MultiSAETrainingRunnerConfig
from sae_lens.saes.sae import TrainingSAE
from torch import Tensor

from sae_lens_afa.demo import load_model as load_demo_model
from sae_lens_afa.demo import load_text
from sae_lens_afa.demo.chapters import TEXT_NAME
from sae_lens_afa.evals.judged_tokens import excluded_ids
from sae_lens_afa.experiments.measures import Centred
from sae_lens_afa.experiments.side_by_side import OwnRandom, Training
from sae_lens_afa.loading.models import HOOKED, load_language_model
from sae_lens_afa.loading.names import first_line, in_own_words
from sae_lens_afa.loading.text import load_text_dataset, text_dataset

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule

DEMO = "demo"
# Documents at the start of a data set that are kept for measuring.
HELD_OUT_DOCUMENTS = 1000
_OFFLINE = (
    "The bundled model needs no network: the activations sweep without a model, the paper's with the preset demo."
)
PROMPTS = 32


@dataclass(frozen=True)
class TextSource:
    """Model and text that activations come from.

    Attributes:
        model: "demo" for the bundled model and text; else as for `load_language_model`.
        dataset: As for `load_text_dataset`; not for "demo".
        context_size: Tokens of a prompt, the first of them BOS.
        model_class_name: SAELens' `model_class_name`.
        centred: Leave special tokens out, and take the mean token of the text off each of the others. BOS is tens of
            times as long as other tokens in many models, and what all tokens share hides how they differ.
    """

    model: str = DEMO
    dataset: str = ""
    context_size: int = 128
    model_class_name: str = HOOKED
    centred: bool = False

    def load_model(self, device: str) -> HookedRootModule:
        """Return the model, with weights as they are (nothing folded or centred).

        Raises:
            ValueError, OSError: it is not known, or cannot be had.
        """
        if self.model == DEMO:
            return load_demo_model(device)
        kwargs = {"center_writing_weights": False} if self.model_class_name == HOOKED else {}
        return _from_afar(lambda: load_language_model(self.model, device, self.model_class_name, kwargs, what="model"))

    def datasets(self) -> tuple[Any, Any]:
        """Return text to train on, and text that is held out: chapters of the demo, or a data set's first documents.

        Raises:
            ValueError, OSError: it is of a kind that is not read, or cannot be had.
        """
        if self.model == DEMO:
            text = load_text()
            return text_dataset(text.train), text_dataset(text.held_out)
        data = load_text_dataset(self.dataset, what="dataset")
        if isinstance(data, str):
            name = data
            what = f"dataset {name!r} cannot be loaded"
            data = _from_afar(lambda: load_dataset(name, split="train", streaming=True), what)
        return data.skip(HELD_OUT_DOCUMENTS), data.take(HELD_OUT_DOCUMENTS)

    def left_out(self, model: HookedRootModule) -> list[int]:
        """Return the ids of tokens that no SAE is trained or judged on."""
        return excluded_ids(model, self.centred)


def _from_afar(load: Callable[[], Any], what: str = "") -> Any:
    """Return what `load` returns; add to a failure what failed, if given, and which sweeps need no network."""
    try:
        return load()
    except (OSError, ValueError) as error:
        said = f"{what}: {first_line(error)}" if what else str(error)
        raise in_own_words(error, f"{said} {_OFFLINE}") from error


def training_batches(
    source: TextSource,
    model: HookedRootModule,
    dataset: Any,
    saes: Mapping[str, TrainingSAE[Any]],
    hooks: Mapping[str, str],
    spaces: Mapping[str, Centred],
    training: Training,
    seed: int,
    device: str,
) -> Iterator[dict[str, Tensor]]:
    """Yield batches of standardised activations [batch_size, d_in] by hook without end, all from one forward pass.

    SAELens' `MultiSAETrainingRunner` checks the hooks and makes the store. Seeds mix the text's tokens in another
    way; its order is the same.
    """
    # As many contexts in the mixing buffer as half of it covers a batch.
    buffer = max(32, 4 * -(-training.batch_size // source.context_size))
    cfg = MultiSAETrainingRunnerConfig(
        saes={name: sae.cfg for name, sae in saes.items()}, hook_names=dict(hooks), model_name=source.model,
        model_class_name=source.model_class_name, exclude_special_tokens=source.left_out(model) or False,
        dataset_path=source.dataset or TEXT_NAME, context_size=source.context_size,
        training_tokens=training.steps * training.batch_size, train_batch_size_tokens=training.batch_size,
        store_batch_size_prompts=PROMPTS, n_batches_in_buffer=buffer, device=device, seed=seed,
        logger=LoggingConfig(log_to_wandb=False), checkpoint_path=None, output_path=None,
    )  # fmt: skip
    runner = MultiSAETrainingRunner(cfg, override_dataset=dataset, override_model=model, override_saes=dict(saes))
    loader = runner.activations_store.get_multi_hook_data_loader()
    draw = OwnRandom("data", seed)
    while True:
        with draw():
            batch = next(loader)
        yield {hook: spaces[hook].standardised(activations) for hook, activations in batch.items()}
