"""Retrieved text: a scored text with the neighbors of each token, so that any setting is arithmetic."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knnlm.lm.scored_text import ScoredText
from knnlm.probability.combiner import Combiner
from knnlm.probability.knn import log_p_of_matches
from knnlm.store.neighbors import MISSING, Neighbors, missing_value
from knnlm.store.temperature import temperature_of
from knnlm.system.own_files import check_readable, replacing_path

ROWS = 4096
"""Rows that are worked on at a time, so that temporaries stay small beside what is kept."""

FORMAT = "knnlm-retrieved-1"


@dataclass(kw_only=True)
class RetrievedText(ScoredText):
    """A scored text and what the store said of each token.

    distances: (n, k) float32, nearest first, missing +inf (ip: -inf).  match: (n, k) bool: the neighbor's value is the
    target.  match_shuffled: the same with the store's values permuted, the control.  values: (n, k), if kept.
    default_temperature: the store's T.  Without tokens all are taken to be 0, of which `match` says where it is.
    """

    distances: NDArray[np.float32]
    match: NDArray[np.bool_]
    metric: str = "l2"
    match_shuffled: NDArray[np.bool_] | None = None
    values: NDArray[Any] | None = None
    default_temperature: float | None = None

    def __post_init__(self) -> None:
        """Check shapes."""
        super().__post_init__()
        n = len(self.log_p_lm)
        if self.distances.shape != self.match.shape or self.distances.ndim != 2 or len(self.distances) != n:
            raise ValueError(
                f"neighbors of a text: expected distances and match of shape ({n}, k), "
                f"found {self.distances.shape} and {self.match.shape}"
            )
        if not len(self.tokens):
            self.tokens = np.zeros(n, np.uint32)
        if self.hits is None:
            rows = range(0, max(1, n), ROWS)
            self.hits = np.concatenate([self.match[at : at + ROWS].any(axis=1) for at in rows])

    @property
    def k(self) -> int:
        """Neighbors kept for each token."""
        return int(self.distances.shape[1])

    @property
    def temperature(self) -> float:
        """T before tuning: the store's, else the store's rule on these neighbors (`temperature_of`)."""
        if self.default_temperature is not None:
            return self.default_temperature
        return temperature_of(self.distances[:: max(1, len(self) // 4096)])

    def shuffled(self) -> RetrievedText:
        """The same text against the store with its values permuted; raises ValueError if that was not cached."""
        if self.match_shuffled is None:
            raise ValueError("no shuffled control in this text: ask for it with shuffle_seed when it is made")
        changed = {f.name: getattr(self, f.name) for f in fields(self)}
        return RetrievedText(
            **{**changed, "match": self.match_shuffled, "match_shuffled": None, "values": None, "hits": None}
        )

    def log_p_knn(self, temperature: float, k: int | None = None) -> NDArray[np.float64]:
        """log p_kNN of each target from its nearest k, (n,): -inf if not retrieved, NaN without any neighbor."""
        one: NDArray[np.float64] = self.log_p_knn_by_k(temperature, [self.k if k is None else k])[0]
        return one

    def log_p_knn_by_k(self, temperature: float, ks: list[int]) -> NDArray[np.float64]:
        """The same for several k from one pass over the distances, (len(ks), n); ks ascending, each at most self.k."""
        out = np.full((len(ks), len(self)), np.nan)
        for start in range(0, max(1, len(self)), ROWS):
            rows = slice(start, min(len(self), start + ROWS))
            out[:, rows] = log_p_of_matches(
                self.distances[rows], self.match[rows], temperature, self.metric, ks, np.float32
            )
        return out

    def neighbors(self, rows: slice) -> Neighbors:
        """Neighbors of some tokens, as a search gives them; without `values` only those of the target have its value.

        Ids are not kept: what was found has 0.
        """
        distances, match = np.asarray(self.distances[rows]), np.asarray(self.match[rows])
        if self.values is not None:
            values: NDArray[Any] = np.asarray(self.values[rows])
        else:
            targets = self.tokens[rows][:, None]
            values = np.where(match, targets, targets ^ np.uint32(1))
        there = np.isfinite(distances)
        values = np.where(there, values, np.array(missing_value(values.dtype), values.dtype))
        return Neighbors(distances, values, np.where(there, 0, MISSING).astype(np.int64), self.metric)

    def log_p_of(self, combiner: Combiner) -> NDArray[np.floating[Any]]:
        """log p of each token under any combiner of the neighbors and features that are kept, (n,)."""
        parts = [
            combiner.log_p(
                self.log_p_lm[rows],
                self.neighbors(rows),
                {name: column[rows] for name, column in self.features.items()},
                self.tokens[rows],
            )
            for rows in (slice(at, at + ROWS) for at in range(0, max(1, len(self)), ROWS))
        ]
        return np.concatenate(parts)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, with everything else as JSON in its header."""
        from safetensors.numpy import save_file

        arrays: dict[str, NDArray[Any]] = {}
        plain: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, np.ndarray):
                # safetensors knows no unsigned 64-bit in older releases, and bool as bytes.
                arrays[f.name] = np.ascontiguousarray(value.view(np.uint8) if value.dtype == bool else value)
            elif f.name in ("features", "log_p"):
                arrays.update({f"{f.name}.{name}": np.ascontiguousarray(a) for name, a in value.items()})
            elif value is not None:
                plain[f.name] = value
        with replacing_path(Path(path)) as partial:
            save_file(arrays, partial, metadata={"format": FORMAT, "plain": json.dumps(plain, sort_keys=True)})

    @classmethod
    def load(cls, path: str | Path) -> RetrievedText:
        """Read what `save` wrote; raises ValueError for anything else."""
        from safetensors import SafetensorError, safe_open

        check_readable(Path(path))
        try:
            with safe_open(str(path), framework="numpy") as f:
                metadata = f.metadata() or {}
                arrays = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(
                f"{path}: expected neighbors of a text (safetensors), found something else: {error}"
            ) from error
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path}: expected format {FORMAT}, found {metadata.get('format')}; compute it again")
        plain = json.loads(metadata["plain"])
        columns: dict[str, Any] = {
            field: {n.removeprefix(f"{field}."): arrays.pop(n) for n in list(arrays) if n.startswith(f"{field}.")}
            for field in ("features", "log_p")
        }
        for name in ("match", "match_shuffled", "hits"):
            if name in arrays:
                arrays[name] = arrays[name].view(np.bool_)
        return cls(**arrays, **plain, **columns)
