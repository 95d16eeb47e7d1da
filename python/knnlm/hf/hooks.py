"""Hooks: a store beside a model of Hugging Face; while they are there, the model's logits are the mixture.

A hook keeps the keys that the model makes on its way, one at its end looks for their neighbors and writes log p of the
mixture in the place of the logits, after everything that the model itself does to them. So its own `generate`, loss and
whatever calls it see the mixture. Nothing of the model is replaced, and `detach` takes both hooks away.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from knnlm.hf.few_words import mix_in_place
from knnlm.hf.outputs import kept, logits_of, loss_of, read, with_logits
from knnlm.lm.combiners import fixed
from knnlm.lm.retriever import Retriever
from knnlm.lm.settings import Settings, settings_of
from knnlm.model.capture import Capture
from knnlm.model.key_spec import KeySpec
from knnlm.model.modules import autocast, device_of, eager, is_compiled, unwrapped
from knnlm.probability.combiner import Combiner
from knnlm.probability.knn import knn_weights
from knnlm.store.datastore import Datastore
from knnlm.store.neighbors import Neighbors
from knnlm.store.protocols import Searchable

if TYPE_CHECKING:
    from typing_extensions import Self

NUMBERS = 1 << 22
"""Neighbors whose words are mixed at once."""

_ATTACHED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


class Attached:
    """A store attached to a model; made by `attach`, removed by `detach` or at the end of a `with`.

    model: as it was given, to be called as ever. combiner: what mixes, may be set; λ = 0 leaves the logits as they are,
    bit for bit. retriever: how neighbors are looked for. keys: where the key is captured. wanted: None, or which
    positions of the next calls are looked for, (B, T) bool of the input's shape; others are the model's alone.
    """

    def __init__(
        self,
        model: nn.Module,
        datastore: Searchable,
        keys: KeySpec,
        settings: Settings,
        *,
        context: int,
        tokenizer: Any = None,
        owns_datastore: bool = False,
    ) -> None:
        """Attach the hooks; `attach` checks before that model and store belong together."""
        self.model, self.datastore, self.keys, self.context = model, datastore, keys, context
        self.tokenizer = tokenizer
        self.owns_datastore = owns_datastore
        self.settings = settings
        self.combiner: Combiner = fixed(settings)
        self.retriever = Retriever(datastore, settings, exclude="none")
        self._alone = False
        self.keeps_last = False
        self._seen: Neighbors | None = None
        self.wanted: NDArray[np.bool_] | None = None
        self.module: Any = unwrapped(model)
        encoder = getattr(getattr(self.module, "config", None), "is_encoder_decoder", False)
        self._mask = "decoder_attention_mask" if encoder else "attention_mask"  # of the tokens that have logits
        if self.module in _ATTACHED:
            raise ValueError("model: expected one without a store, found one is attached already: detach it first")
        self._entered: list[AbstractContextManager[object]] = []
        self._stack = ExitStack()
        try:
            self._attach()
        except BaseException:
            self._stack.close()
            raise

    def _attach(self) -> None:
        if is_compiled(self.model):
            self._stack.enter_context(eager(True))
        self._capture = self._stack.enter_context(self._new_capture())
        for handle in (
            self.module.register_forward_pre_hook(self._begin, with_kwargs=True, prepend=True),
            self.module.register_forward_hook(self._mix, with_kwargs=True),
            self.module.register_forward_hook(self._end, with_kwargs=True, always_call=True),
        ):
            self._stack.callback(handle.remove)
        _ATTACHED.add(self.module)
        self._stack.callback(_ATTACHED.discard, self.module)

    @property
    def attached(self) -> bool:
        """Whether the model's logits are the mixture."""
        return self.module in _ATTACHED

    def detach(self) -> None:
        """Leave the model as it was, and close the store if `attach` opened it. Doing it twice is fine."""
        self._stack.close()
        if self.owns_datastore and isinstance(self.datastore, Datastore):
            self.datastore.close()

    def set(self, **settings: Any) -> None:
        """Change λ, T, k, nprobe, rerank, exact or threads from the next call on; None is the store's own.

        Raises ValueError for what cannot be; TypeError for another name.
        """
        self.settings = settings_of(self.datastore, **{**self.settings.to_dict(), **settings})
        self.combiner = fixed(self.settings)
        self.retriever = Retriever(self.datastore, self.settings, exclude="none")

    def last(self, position: int | None) -> tuple[Neighbors | None, NDArray[np.float64]]:
        """Neighbors (k,) and their shares of p_kNN at a position of the last pass; None where none were looked for."""
        if position is None or self._seen is None or not 0 <= position < len(self._seen.ids):
            return None, np.zeros(0)
        found = self._seen[position]
        return found, knn_weights(found.distances, self.combiner.temperature, found.metric)

    def __enter__(self) -> Self:
        """Itself, attached since it was made."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Detach."""
        self.detach()

    @contextmanager
    def alone(self) -> Iterator[Capture]:
        """While it lasts the model is as without the store, and its keys are captured; attached or not."""
        if self._alone:
            raise RuntimeError("the model is used alone already")
        self._alone = True
        try:
            with ExitStack() as stack:
                yield self._capture if self.attached else stack.enter_context(self._new_capture())
        finally:
            self._alone = False

    def _new_capture(self) -> Capture:
        return Capture(self.module, self.keys.representation, self.keys.layer)

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The arithmetic of the store's keys, while the model runs."""
        manager = autocast(device_of(self.module), self.keys.autocast)
        manager.__enter__()
        self._entered.append(manager)

    def _end(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._entered:
            self._entered.pop().__exit__(None, None, None)

    def _mix(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if self._alone or _weighs_nothing(self.combiner):
            return None
        labels = kwargs.get("labels")
        logits = logits_of(output, labels is not None)
        batch, count, _ = logits.shape
        keys = self._capture.of_batch(batch)  # (B, T, d)
        rows = self._rows(kwargs, (batch, keys.shape[1]), count)
        with torch.no_grad():
            mixed = self.mixed(logits, kept(keys, count, kwargs), rows)
        loss = None if labels is None else loss_of(self.module, mixed, labels, kwargs)
        return with_logits(output, mixed, loss)

    def _rows(self, kwargs: Mapping[str, Any], shape: tuple[int, int], count: int) -> NDArray[np.bool_] | None:
        """Which of the positions with logits are looked for, (B, count); None: all."""
        masks = [mask for mask in (read(kwargs.get(self._mask), shape[1]),) if mask is not None]
        if self.wanted is not None:
            if self.wanted.shape != tuple(shape):
                raise ValueError(f"wanted: expected the shape of the input, {tuple(shape)}, found {self.wanted.shape}")
            masks.append(torch.from_numpy(self.wanted))
        if not masks:
            return None
        found = [kept(mask, count, kwargs).cpu().numpy() for mask in masks]
        every: NDArray[np.bool_] = np.logical_and.reduce(found)
        return every

    def mixed(self, logits: Tensor, keys: Tensor, rows: NDArray[np.bool_] | None = None) -> Tensor:
        """log p of all words, (B, T, v) float32, from logits (B, T, v) and keys (B, T, d).

        rows: (B, T), which of them are looked for; the others are log p_LM.
        """
        out = torch.log_softmax(logits.float(), -1)
        flat = out.view(-1, out.shape[-1])
        at = np.arange(len(flat)) if rows is None else np.flatnonzero(rows)
        if not len(at):
            return out
        index = torch.from_numpy(at)
        queries = keys.reshape(-1, keys.shape[-1])
        if len(at) < len(queries):
            queries = queries[index.to(keys.device)]
        found = self.retriever.find(queries.float().cpu().numpy())  # one copy a step
        self._seen = found if self.keeps_last else None
        step = max(1, NUMBERS // (found.k + 1))
        for a in range(0, len(at), step):
            some = None if len(flat) == len(at) <= step else index[a : a + step].to(out.device)
            mix_in_place(flat, some, found[a : a + step], self.combiner)
        return out


def _weighs_nothing(combiner: Combiner) -> bool:
    weight: Any = getattr(combiner, "lambda_", None)
    return weight is not None and not np.any(weight)
