"""Reader: feeds one growing text to a model, a token at a time, with the model's own cache if it has one."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from knnlm.model.capture import Capture
from knnlm.model.forward import NotFiniteError
from knnlm.model.key_choice import resolve
from knnlm.model.key_spec import KeySpec
from knnlm.model.loaded import Loaded
from knnlm.model.modules import (
    autocast,
    casts_kept,
    device_of,
    eager,
    is_compiled,
    name_of,
    output_embedding,
    unwrapped,
)
from knnlm.model.windows import check_window, plan

CACHES = ("past_key_values", "cache_params", "state")
"""What Hugging Face models call what they remember of the text, in their arguments and in their output."""

FIXED = ("HybridCache", "HybridChunkedCache", "SlidingWindowCache", "StaticCache")
"""Caches of transformers before 5 that have room for what was read when they were made, and no more."""


class Reader:
    """Feeds one growing text to a model: logits and key at its last position, with the model's own cache if any.

    Windows are those of the dump (`windows.plan`): when one is full, the next begins with `context` earlier tokens, so
    a key is the one that the same text would have in a store. Models of Hugging Face keep what they have read as one of
    `CACHES`, `TransformerLM` as `cache`; others get the whole window every time. The arithmetic is that of the
    keys.
    """

    def __init__(self, loaded: Loaded, keys: KeySpec, capture: bool = True, every: bool = False) -> None:
        """Attach the capture; close with `close`. every: `keys_read` gives all keys of a pass, not the last alone."""
        spec = resolve(loaded, keys)
        assert spec.window is not None
        assert spec.context is not None
        check_window(spec.window, spec.context, loaded.context)
        self.model, self.window, self.context = unwrapped(loaded.model), spec.window, spec.context
        self.device, self.compiled = device_of(self.model), is_compiled(self.model)
        self.autocast = spec.autocast
        self.inputs: list[int] = [int(loaded.tokenizer.bos_id)]
        accepted = inspect.signature(self.model.forward).parameters
        self._name = next((name for name in CACHES if name in accepted), "cache" if "cache" in accepted else None)
        self._options: dict[str, Any] = (
            {"use_cache": True} if "use_cache" in accepted and self._name is not None else {}
        )
        head = output_embedding(self.model)
        reads_head = head is not None and spec.representation == f"module:{name_of(self.model, head)}"
        for name in ("logits_to_keep", "num_logits_to_keep"):  # of transformers before 4.49
            if name in accepted and not (every and reads_head):
                self._options[name] = 1
        self._start = -1
        self._fed = 0
        self._cache: Any = None
        self._was_training = self.model.training
        self.capture = Capture(self.model, spec.representation, spec.layer) if capture else None
        self.model.eval()
        self._casts = ExitStack()
        if self.autocast is not None:
            self._casts.enter_context(casts_kept())

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens to the text."""
        self.inputs.extend(int(token) for token in tokens)

    def read(self) -> tuple[torch.Tensor, NDArray[np.float32] | None]:
        """Final logits (v,) float32 for the next token, and the key (1, d).

        Raises NotFiniteError where the model gives NaN.
        """
        start = self.window_start
        if start != self._start or self._name is None:
            self._start, self._fed, self._cache = start, start, self._empty_cache()
        try:
            output = self._pass()
        except (ValueError, RuntimeError, IndexError, TypeError):
            if self._fed == self._start:
                raise
            self._forget_cache()  # some models of some releases want more than their cache
            output = self._pass()
        key = self.keys_read[-1:] if self.capture is not None else None  # (1, d)
        if self._name is not None:
            self._cache, self._fed = getattr(output, self._name, None), len(self.inputs)
            if self._cache is None or type(self._cache).__name__ in FIXED:  # none, or a full one
                self._forget_cache()
        logits = output.logits[0, -1].float()
        if bool(torch.isnan(logits).any()) or not (key is None or np.isfinite(key).all()):
            raise NotFiniteError(
                f"the model gave NaN after {len(self.inputs) - 1} tokens; run it in another type (dtype='float32', in "
                "commands --dtype float32), and if that does not help, its weights are damaged"
            )
        return logits, key

    def _pass(self) -> Any:
        fed = torch.tensor([self.inputs[self._fed :]], dtype=torch.int64, device=self.device)  # (1, T)
        options = self._options if self._name is None else {**self._options, self._name: self._cache}
        # As in the dump, so that the key is the one that the store would have. Casts are not kept in inference mode.
        no_gradient = torch.inference_mode() if self.autocast is None else torch.no_grad()
        with no_gradient, eager(self.compiled), autocast(self.device, self.autocast):
            return self.model(fed, **options)

    def _forget_cache(self) -> None:
        """Read the window again from now on."""
        self._name, self._cache, self._fed = None, None, self._start
        if "use_cache" in self._options:
            self._options["use_cache"] = False

    @property
    def window_start(self) -> int:
        """First input position of the window that the next pass reads."""
        return plan(len(self.inputs), self.window, self.context)[-1].start

    @property
    def keys_read(self) -> NDArray[np.float32]:
        """Keys of the input positions that the last pass read, (T, d), or of the last alone; see `every`."""
        assert self.capture is not None
        with autocast(self.device, self.autocast):
            return np.asarray(self.capture.keys[0].float().cpu().numpy())

    def _empty_cache(self) -> Any:
        if self._name != "cache":
            return None
        from knnlm.model.transformer import KVCache

        return KVCache()

    def close(self) -> None:
        """Remove the hooks, and forget cast weights."""
        self._casts.close()
        if self.capture is not None:
            self.capture.close()
        self.model.train(self._was_training)
