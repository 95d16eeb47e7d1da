"""faiss, torch and the extension bring threads of their own: whichever comes first, neighbors are the right ones."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest

pytest.importorskip("faiss")

CODE = """
import sys
import numpy as np

modules = {"faiss": "faiss", "torch": "torch", "knnlm": "knnlm._core"}
for name in sys.argv[2:]:
    __import__(modules[name])
import faiss, knnlm, torch

rng = np.random.default_rng(0)
keys, queries = (rng.standard_normal((n, 64)).astype(np.float32) for n in (3000, 40))
d = (queries**2).sum(1)[:, None] + (keys**2).sum(1) - 2.0 * queries.astype(np.float64) @ keys.T.astype(np.float64)
best = np.argsort(d, axis=1)[:, :8]
with knnlm.Datastore.create(sys.argv[1], dim=64, keep_keys="float32") as store:
    store.add(keys, np.arange(3000, dtype=np.uint32))
    store.build(nlist=16)
    for threads in (1, 2, None):
        for _ in range(3):
            index = faiss.IndexFlatL2(64)
            index.add(keys)
            x = torch.from_numpy(queries)
            product = (x @ torch.from_numpy(keys).T).numpy()
            assert np.abs(product - queries @ keys.T).max() < 1e-3
            assert (index.search(queries, 8)[1] == best).all()
            assert (store.search(queries, 8, exact=True, threads=threads).ids == best).all()
            assert (store.search(queries, 8, nprobe=16, rerank="keys", threads=threads).ids == best).all()
print("right")
"""


@pytest.mark.parametrize("order", list(itertools.permutations(("faiss", "torch", "knnlm"))))
def test_neighbors_are_right_in_every_order_of_imports(order, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE, str(tmp_path / "store"), *order],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.strip() == "right", done.stderr[-2000:]
    assert done.returncode == 0
