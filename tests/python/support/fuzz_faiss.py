"""Damages FAISS indexes of every type at random and imports them: no answer may be wrong, nothing may be left behind.

`test_import_faiss_fuzz.py` runs a short form. The full one prints what became of the files, by type:

    python tests/python/support/fuzz_faiss.py --seconds 600 --seed 0

Whatever the bytes: this process lives, and the answer is a store with what FAISS's own `reconstruct` gives, where it
gives anything, or an error of ours with nothing on disk.
"""

from __future__ import annotations

import argparse
import random
import struct
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from faiss_files import KINDS, Forks, index_of, vectors, write

from knnlm import Datastore
from knnlm.exchange import faiss_index
from knnlm.exchange.faiss_index import FaissError
from knnlm.exchange.import_vectors import import_faiss

N = 120
HEAD = 400
"""Bytes at the start of a file, where most of what is damaged goes: sizes and types are there."""

NUMBERS = (0, 1, 2, 7, N - 1, N, N + 1, 255, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -1, -2, -N)


def indexes(folder: Path, kinds: list[str], ids: bool) -> dict[str, bytes]:
    """A file of each kind; with ids of their own where a kind takes them."""
    made = {}
    for kind in kinds:
        own = np.arange(N) * 2 if ids and ("IVF" in kind or "IDMap" in kind) and "," in kind else None
        try:
            try:
                index = index_of(kind, vectors(N), own)
            except RuntimeError:  # takes no ids
                index = index_of(kind, vectors(N))
        except pytest.skip.Exception:
            continue
        made[kind] = write(index, folder / "whole.index").read_bytes()
    return made


def damaged(whole: bytes, rng: random.Random) -> bytes:
    """The file with one to three changes."""
    content = bytearray(whole)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if not content:
            break
        most = len(content) if rng.random() < 0.4 else min(HEAD, len(content))
        at = rng.randrange(most)
        kind = rng.random()
        if kind < 0.35:
            content[at] ^= 1 << rng.randrange(8)
        elif kind < 0.6:
            number = struct.pack("<q", rng.choice(NUMBERS))[: rng.choice((4, 8))]
            content[at : at + len(number)] = number
        elif kind < 0.7:
            content[at : at + 4] = rng.choice((b"IxFI", b"IwFl", b"IxMp", b"IxM2", b"IxPT", b"ilar", b"full", b"sprs"))
        elif kind < 0.8:
            del content[at : at + rng.choice((1, 4, 8, 64))]
        elif kind < 0.9:
            content[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 4, 8))))
        else:
            del content[at:]
    return bytes(content)


class Campaign:
    """Damaged files, and what became of them."""

    def __init__(self, folder: Path, forks: Forks, seed: int) -> None:
        self.folder, self.forks, self.seed = folder, forks, seed
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.place = folder / "place"
        self.values = np.arange(2 * N) * 3
        self.place.mkdir()
        np.save(folder / "values.npy", self.values)
        np.save(folder / "values-n.npy", self.values[:N])

    def attack(self, kind: str, whole: bytes, number: int) -> None:
        """Import one damaged file; what is wrong is an AssertionError that names how to make it again."""
        rng = random.Random(f"{self.seed} {kind} {number}")
        path = self.folder / "damaged.index"
        path.write_bytes(damaged(whole, rng))
        values = self.folder / rng.choice(("values.npy", "values-n.npy"))
        try:
            found = import_faiss(self.place / "store", path, values, keep_keys="float32")
        except (ValueError, FaissError) as error:
            said = str(error)
            self.outcomes[kind, "ended" if "was ended by" in said or "ended with" in said else "refused"] += 1
            found = None
        if found is None:
            assert not list(self.place.iterdir()), f"seed {self.seed}, {kind}, {number}: left after {said}"
            return
        with Datastore.open(self.place / "store") as store:
            keys, got = store.keys(0, store.next_id), store.values(0, store.next_id)
        for file in (self.place / "store").iterdir():
            file.unlink()
        (self.place / "store").rmdir()
        out = self.folder / "oracle.npz"
        out.unlink(missing_ok=True)
        if not self.forks.reconstructed(path, out):
            self.outcomes[kind, "imported, FAISS says nothing"] += 1
            return
        with np.load(out) as saved:
            ids, expected = saved["ids"], saved["keys"]
        where = f"seed {self.seed}, {kind}, {number}"
        assert np.isfinite(keys).all(), where
        order = np.argsort(ids, kind="stable")
        np.testing.assert_allclose(keys, expected[order], rtol=1e-4, atol=1e-4, err_msg=where)
        rows = ids[order] - (ids.min() if found.matched == "order of ids" else 0)
        np.testing.assert_array_equal(got, self.values[rows], err_msg=where)
        self.outcomes[kind, "imported"] += 1

    def histogram(self) -> str:
        """What became of the files."""
        names = ("imported", "imported, FAISS says nothing", "refused", "ended")
        lines = [f"{'':30}" + "".join(f"{name:>30}" for name in names)]
        for kind in dict.fromkeys(kind for kind, _ in self.outcomes):
            lines.append(f"{kind:30}" + "".join(f"{self.outcomes[kind, name]:30,}" for name in names))
        return "\n".join(lines)


def main() -> None:
    """The full form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    forks = Forks()
    faiss_index.start = forks.start  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder), forks, given.seed)
        kinds = [kind for kind in KINDS if kind != "binary"]
        files = [indexes(Path(folder), kinds, ids) for ids in (False, True)]
        began, number = time.monotonic(), 0
        while time.monotonic() - began < given.seconds:
            for kind, whole in files[number % 2].items():
                campaign.attack(kind, whole, number)
            number += 1
        print(campaign.histogram())
    forks.close()


if __name__ == "__main__":
    main()
