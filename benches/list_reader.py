"""How many entries a search scans, read from the files of a store by nothing but docs/format.md."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

CENTROIDS, LIST_OFFSETS = 17, 32


def sections(file: Path) -> dict[int, bytes]:
    """Bytes of every section of a segment file by kind."""
    raw = file.read_bytes()
    (table, count) = struct.unpack_from("<QI", raw, len(raw) - 64)
    entries = [struct.unpack_from("<IIQQ", raw, table + 48 * i) for i in range(count)]
    return {kind: raw[offset : offset + length] for kind, _, offset, length in entries}


class Lists:
    """Centroids and list lengths of a built store."""

    def __init__(self, store: Path) -> None:
        manifest = json.loads(max(store.glob("manifest-*.json")).read_text().split("\n", 1)[1])
        self.metric = manifest["metric"]
        centroids = sections(store / manifest["codebook"]["file"])[CENTROIDS]
        self.centroids = np.frombuffer(centroids, "<f4").reshape(-1, manifest["dim"])  # (nlist, d)
        offsets = [
            np.frombuffer(sections(store / segment["file"])[LIST_OFFSETS], "<u8") for segment in manifest["lists"]
        ]
        self.lengths = sum(np.diff(o.astype(np.int64)) for o in offsets)  # (nlist,)

    def scanned(self, queries: np.ndarray, nprobe: int) -> float:
        """Mean number of entries in the `nprobe` best lists of each query."""
        products = queries @ self.centroids.T  # (q, nlist)
        scores = (np.square(self.centroids).sum(1) - 2 * products) if self.metric == "l2" else -products
        probed = np.argpartition(scores, min(nprobe, scores.shape[1]) - 1, axis=1)[:, :nprobe]
        return float(self.lengths[probed].sum(1).mean())
