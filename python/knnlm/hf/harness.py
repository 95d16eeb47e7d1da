"""Harness: a model with its store as a model of lm-evaluation-harness, for any of its tasks.

It is the harness's own class for Hugging Face with a store attached: prompts, batches and metrics are the harness's,
and neighbors are looked for only where a continuation is scored. With λ = 0 all results are those of its class `hf`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from torch import Tensor

from knnlm.hf.attach import attach
from knnlm.lm.settings import NAMES
from knnlm.model.of_store import remembered_model
from knnlm.store.opening import open_store
from knnlm.system.extras import explained

try:
    from lm_eval.api.registry import register_model  # type: ignore[import-untyped,import-not-found,unused-ignore]
    from lm_eval.models.huggingface import HFLM  # type: ignore[import-untyped,import-not-found,unused-ignore]
except ImportError as error:
    raise explained(error, "knnlm in lm-evaluation-harness") from error


@register_model("knnlm")
class HarnessLM(HFLM):  # type: ignore[misc]
    """`--model knnlm --model_args store=STORE`.

    store: its folder. pretrained: the model, by default the one that the store remembers. lambda_, temperature, k,
    nprobe, rerank, exact, threads: as of `attach`, by default as tuned. Others: as of the harness's class `hf`.

    Raises IdentityError for a model that did not write the store.
    """

    def __init__(self, store: Any, pretrained: Any = None, **options: Any) -> None:
        """Load the model as the harness does, and attach the store."""
        own = {name: options.pop(name) for name in NAMES if name in options}
        with open_store(store) as opened:
            source, revision = remembered_model(opened) if pretrained is None else (pretrained, None)
            if revision is not None:
                options.setdefault("revision", revision)
            dtype = (opened.attributes.get("model") or {}).get("dtype")
            if dtype is not None:
                options.setdefault("dtype", dtype)
        options.setdefault("device", "cuda" if torch.cuda.is_available() else "cpu")
        super().__init__(pretrained=source, **options)
        self.memory = attach(self.model, store, tokenizer=self.tokenizer, **own)
        self._scored: dict[tuple[int, ...], int] = {}

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **options: Any) -> Any:
        """Notes which tokens of each input are scored, for `_model_call`."""
        self._scored = {}
        for _, context, continuation in requests:
            given = tuple((list(context) + list(continuation))[-(self.max_length + 1) :][:-1])
            self._scored[given] = max(self._scored.get(given, 0), min(len(continuation), len(given)))
        try:
            return super()._loglikelihood_tokens(requests, *args, **options)
        finally:
            self._scored = {}

    def _model_call(self, inps: Tensor, *args: Any, **options: Any) -> Any:
        """Has neighbors looked for where continuations are scored."""
        if self._scored:
            self.memory.wanted = self._wanted(inps)
        try:
            return super()._model_call(inps, *args, **options)
        finally:
            self.memory.wanted = None

    def _wanted(self, inps: Tensor) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Positions whose next token is scored, (B, T); all of a row that nobody has announced."""
        wanted = np.zeros(tuple(inps.shape), bool)
        for row, ids in enumerate(inps.tolist()):
            length = len(ids)  # padding on the right is zeros, which may be tokens, too
            while tuple(ids[:length]) not in self._scored and length and ids[length - 1] == 0:
                length -= 1
            scored = self._scored.get(tuple(ids[:length]), len(ids))
            wanted[row, max(0, length - scored) : length] = True
        return wanted


def evaluate_tasks(
    store: Any,
    tasks: Sequence[str],
    model: Any = None,
    *,
    without_store: bool = False,
    include_path: Any = None,
    loading: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    apply_chat_template: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Results of tasks by name, as the harness gives them, and the settings of the mixture, None without the store.

    model: folder or name; None = the one that the store remembers. include_path: folder with tasks of one's own.
    loading: arguments of the harness's class (device, dtype, batch_size …); settings: those of `attach`; None in them
    is the default. Raises ValueError for tasks that the harness does not know.
    """
    from lm_eval import simple_evaluate  # type: ignore[import-untyped,import-not-found,unused-ignore]
    from lm_eval.tasks import TaskManager  # type: ignore[import-untyped,import-not-found,unused-ignore]

    own_tasks = None if include_path is None else str(include_path)
    manager = TaskManager(include_path=own_tasks, include_defaults=False)
    if any(task not in manager.all_tasks for task in tasks):  # to read thousands of files takes a while
        manager = TaskManager(include_path=own_tasks)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        near = get_close_matches(unknown[0], manager.all_tasks, 3)
        raise ValueError(
            f"tasks: expected names that lm-evaluation-harness knows, found {unknown[0]!r}"
            + (f": did you mean {' or '.join(near)}?" if near else "; `lm-eval ls tasks` lists them")
        )
    options = {name: value for name, value in (loading or {}).items() if value is not None}
    own = {name: value for name, value in (settings or {}).items() if value is not None}
    lm = HarnessLM(store, model, **options, **own)
    try:
        if without_store:
            lm.memory.detach()
        found = simple_evaluate(
            lm,
            tasks=list(tasks),
            num_fewshot=num_fewshot,
            limit=limit,
            apply_chat_template=apply_chat_template,
            task_manager=manager,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
            bootstrap_iters=1000,
            log_samples=False,
        )
        return {"results": found["results"], "settings": None if without_store else lm.memory.settings.to_dict()}
    finally:
        lm.memory.detach()
