"""SAELens' store of activations, with a state from which the same stream goes on.

SAELens keeps the number of rows that were read, reads all of them again, and starts with an empty mixing buffer. Here
the place in the text and what the buffer holds are kept, and reading goes on at that row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Self, cast

import torch
from sae_lens import ActivationsStore
from sae_lens.pretokenize_runner import get_special_token_from_cfg
from sae_lens.tokenization_and_batching import concat_and_batch_sequences
from torch import Tensor
from typing_extensions import override

from sae_lens_afa.training.contexts import Place, packed_contexts
from sae_lens_afa.training.mixing import Mixed, MixingBuffer
from sae_lens_afa.training.run_state import StreamState, load_stream


class ResumableStore(ActivationsStore):
    """An `ActivationsStore` that gives the same batches, and whose stream can be left and taken up again.

    Made of another store by `ResumableStore.of`.
    """

    place: Place
    # Where permutations come from; None: torch's own generator, as in SAELens.
    generator: torch.Generator | None = None
    # The last batches with the states after them: a thread that works ahead has made more than are trained on.
    _made: deque[tuple[Tensor, StreamState]]
    _start: StreamState
    _mixing: MixingBuffer | None = None
    _loaded_from: Path | None = None
    # Rows of the epochs before this one.
    _n_before: int = 0

    @classmethod
    def of(cls, store: ActivationsStore, *, ahead: int = 0, seed: int = 0) -> Self:
        """Take over a store from which nothing has been read.

        Args:
            store: The store; it is not to be used any more.
            ahead: Batches that another thread makes before they are asked for. It must not draw from the random
                numbers of training: permutations then come from a generator of their own.
            seed: Of that generator.
        """
        own = cls.__new__(cls)
        vars(own).update(vars(store))
        own.generator = torch.Generator().manual_seed(seed) if ahead > 0 else None
        own._made = deque(maxlen=ahead + 2 if ahead > 0 else 0)
        own._go_to(Place(), 0)
        own._start = own._state()
        return own

    # ---- reading

    @override
    def _iterate_tokenized_sequences(self) -> Generator[Tensor, None, None]:
        """Return the contexts of an epoch, from its beginning."""
        return self._contexts_from(Place())

    def has_a_context(self) -> bool:
        """Return whether the text fills one context; nothing is used up."""
        here = self._state()
        found = next(self._iterate_tokenized_sequences(), None) is not None
        self._go_to(here.place, here.n_rows)
        return found

    def _go_to(self, place: Place, n_rows: int) -> None:
        """Read on from a place in the text, before which there are `n_rows` rows."""
        self.n_dataset_processed = n_rows
        self.place = place
        if self.dataset is not None:
            self.iterable_sequences = self._contexts_from(place)

    def _contexts_from(self, place: Place) -> Generator[Tensor, None, None]:
        """Return contexts [context_size] from a place on; `self.place` is where the next one begins."""
        self.place, self._n_before = place, self.n_dataset_processed - place.row
        return self._read_contexts(place)

    def _read_contexts(self, place: Place) -> Generator[Tensor, None, None]:
        tokenizer = getattr(self.model, "tokenizer", None)
        begin = None if tokenizer is None or not self.prepend_bos else tokenizer.bos_token_id
        if self.is_dataset_tokenized or self.disable_concat_sequences:
            # A row gives one context or none.
            rows: Any = self._iterate_raw_dataset() if self.is_dataset_tokenized else self._iterate_raw_dataset_tokens()
            for i, row in enumerate(rows, place.row):
                for context in self._contexts_of_row(row, begin):
                    self.place = Place(i + 1)
                    yield context
            return
        separator = None if tokenizer is None else get_special_token_from_cfg(self.sequence_separator_token, tokenizer)
        documents = self._iterate_raw_dataset_tokens()
        for context, after in packed_contexts(
            documents, self.context_size, begin=begin, separator=separator, place=place
        ):
            self.place = after
            yield context

    def _contexts_of_row(self, row: Any, begin: int | None) -> Iterable[Tensor]:
        if self.is_dataset_tokenized:
            return [torch.as_tensor(row[: self.context_size], dtype=torch.long, device=self.device)]
        return concat_and_batch_sequences(
            iter([row]), self.context_size, begin_batch_token_id=begin, disable_concat_sequences=True
        )

    @override
    def _iterate_raw_dataset(self) -> Generator[Any, None, None]:
        """Yield the rows' text or tokens, from `self.place` on, counting those that are done."""
        rows = cast(Any, self.dataset)
        first = self.place.row
        if hasattr(rows, "__len__") and first >= len(rows):  # `skip` would raise
            return
        if first > 0:
            rows = rows.skip(first) if hasattr(rows, "skip") else islice(rows, first, None)
        for row in rows:
            yield row[self.tokens_column]
            self.n_dataset_processed += 1

    # ---- mixing

    @override
    def get_data_loader(self) -> Iterator[Tensor]:
        return self._mixing_from(Mixed())

    def _mixing_from(self, content: Mixed) -> MixingBuffer:
        self._mixing = MixingBuffer(
            buffer_size=self.n_batches_in_buffer * self.training_context_size,
            batch_size=self.train_batch_size_tokens,
            source=self._iterate_filtered_activations(),
            mix_fraction=self.activations_mixing_fraction,
            generator=self.generator,
            content=content,
        )
        return self._mixing

    @override
    def __next__(self) -> Tensor:
        batch = super().__next__()
        if self._made.maxlen:
            self._made.append((batch, self._state()))
        return batch

    # ---- the stream's state

    @override
    def load_from_checkpoint(self, checkpoint_path: str | Path) -> None:
        """Go on where a checkpoint was; SAELens' own have only the number of rows, and all are read again.

        Once for a checkpoint: SAELens' runner asks for it when a thread that works ahead has begun already.
        """
        if self._loaded_from == Path(checkpoint_path):
            return
        self._loaded_from = Path(checkpoint_path)
        state = load_stream(self._loaded_from)
        if state is None:
            super().load_from_checkpoint(checkpoint_path)
        else:
            self.continue_from(state)

    def state_after(self, batch: Tensor | None) -> StreamState:
        """Return the state with which the stream goes on after a batch that it gave; None: before the first."""
        if not self._made.maxlen:
            return self._state()
        return next((state for made, state in self._made if made is batch), self._start)

    def _state(self) -> StreamState:
        return StreamState(
            self.place,
            self._n_before + self.place.row,  # the row before is counted when the next one is read
            getattr(self, "current_row_idx", 0),
            Mixed() if self._mixing is None else self._mixing.content,
            None if self.generator is None else self.generator.get_state(),
        )

    def continue_from(self, state: StreamState) -> None:
        """Give from now on what a stream in this state would give."""
        self._go_to(state.place, state.n_rows)
        self.current_row_idx = state.cached_row
        if self.generator is not None and state.generator is not None:
            self.generator.set_state(state.generator)
        moved = (None if part is None else part.to(self.device) for part in state.mixed)
        self._dataloader = self._mixing_from(Mixed(*moved))
        self._start = state
