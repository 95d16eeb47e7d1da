"""FAISS indexes come in with their own ids and vectors, exactly or as FAISS decodes them, or are refused by name."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_corpus import run, run_json
from faiss_files import EXACT, KINDS, LOSSY, D, Forks, forks, index_of, lists_of, vectors, write  # noqa: F401

from knnlm import Datastore, StoreError
from knnlm.exchange import faiss_index
from knnlm.exchange.faiss_index import FaissError
from knnlm.exchange.import_vectors import import_faiss

faiss = pytest.importorskip("faiss")
N = 120


@pytest.fixture(autouse=True)
def _quick(forks: Forks, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:  # noqa: F811
    if "started" not in request.keywords:
        monkeypatch.setattr(faiss_index, "start", forks.start)


def values_file(folder: Path, values: object) -> Path:
    np.save(folder / "values.npy", values)
    return folder / "values.npy"


def stored(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with Datastore.open(path) as store:
        assert store.verify() == []
        return store.keys(0, store.next_id), store.values(0, store.next_id)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_is_imported_exactly_or_lossily_or_refused_by_name(kind: str, tmp_path: Path) -> None:
    keys, values = vectors(N), np.arange(N) * 7
    index = index_of(kind, keys)
    write(index, tmp_path / "knn.index")
    given = (tmp_path / "store", tmp_path / "knn.index", values_file(tmp_path, values))
    if KINDS[kind] not in (EXACT, LOSSY):
        with pytest.raises(ValueError, match=KINDS[kind]):
            import_faiss(*given)
        assert names(tmp_path) == ["knn.index", "values.npy"]
        return
    within = faiss.downcast_index(index.index) if kind.startswith("IDMap") else index
    lists = lists_of(within)
    if lists is not None:
        lists.make_direct_map()
    try:
        expected = np.stack([within.reconstruct(i) for i in range(N)])
    except RuntimeError:  # in an older FAISS
        with pytest.raises(ValueError, match=f"that gives its vectors, found {type(index).__name__}"):
            import_faiss(*given)
        return
    found = import_faiss(*given, keep_keys="float32")
    assert (found.entries, found.lossy, found.unused) == (N, KINDS[kind] == LOSSY, 0)
    assert found.kind is not None
    assert found.kind.startswith(type(index).__name__)
    got, of = stored(tmp_path / "store")
    np.testing.assert_array_equal(of, values)
    if KINDS[kind] == EXACT:
        np.testing.assert_array_equal(got, keys)
    else:
        np.testing.assert_allclose(got, expected, atol=2e-6)
        assert np.corrcoef(got.reshape(-1), keys.reshape(-1))[0, 1] > 0.5


@pytest.mark.parametrize("kind", ["IVF4,Flat", "IDMap,Flat", "IDMap2,Flat", "IDMap,IVF4,Flat", "IDMap2,IVF4,Flat"])
@pytest.mark.parametrize("order", ["shuffled", "few", "shifted"])
def test_values_belong_to_the_ids_that_an_index_gives(kind: str, order: str, tmp_path: Path) -> None:
    """The value of a vector is what a program finds by `values[id]`, the id being what FAISS's search answers."""
    keys, rng = vectors(N), np.random.default_rng(2)
    ids, count = {
        "shuffled": (rng.permutation(N), N),
        "few": (np.sort(rng.permutation(3 * N)[:N]), 3 * N),
        "shifted": (np.arange(N) + 10, N),
    }[order]
    values = rng.integers(0, 50000, count)
    index = index_of(kind, keys, ids)
    write(index, tmp_path / "knn.index")
    found = import_faiss(tmp_path / "store", tmp_path / "knn.index", values_file(tmp_path, values))
    assert (found.entries, found.unused, found.lossy) == (N, count - N, False)
    assert found.matched in (("order of ids",) if order == "shifted" else ("id", "row"))
    got, of = stored(tmp_path / "store")
    first = 10 if order == "shifted" else 0
    if "IVF" in kind:
        faiss.extract_index_ivf(index).nprobe = 4
    _, said = index.search(keys, 1)
    by_key = {key.tobytes(): int(values[i - first]) for key, i in zip(keys, said[:, 0], strict=True)}
    assert [by_key[key.tobytes()] for key in got] == of.tolist()
    np.testing.assert_array_equal(of, values[np.sort(ids) - first])  # in the order of the values


def test_ids_of_the_values_say_whose_they_are(tmp_path: Path) -> None:
    keys, rng = vectors(N), np.random.default_rng(3)
    ids = np.unique(rng.integers(0, 2**62, 4 * N))[: N + 5]
    rng.shuffle(ids)
    write(index_of("IVF4,Flat", keys, ids[:N]), tmp_path / "knn.index")
    values = values_file(tmp_path, np.arange(N + 5))
    with pytest.raises(ValueError, match=r"found 125 values and ids from \d+ to \d+, no rows of it: give ids"):
        import_faiss(tmp_path / "store", tmp_path / "knn.index", values)
    ids.tofile(tmp_path / "ids.bin")
    found = import_faiss(tmp_path / "store", tmp_path / "knn.index", values, ids=tmp_path / "ids.bin")
    assert (found.entries, found.unused, found.matched) == (N, 5, "ids file")
    got, of = stored(tmp_path / "store")
    np.testing.assert_array_equal(got, keys)
    np.testing.assert_array_equal(of, np.arange(N))
    for wrong, text in [(ids[:-1], "an id for each of 125 values"), (np.append(ids[1:], ids[5]), "each id once"),
                        (np.append(ids[1:], 3), "found none for 1 of its 120 vectors")]:  # fmt: skip
        np.save(tmp_path / "wrong.npy", wrong)
        with pytest.raises(ValueError, match=text):
            import_faiss(tmp_path / "other", tmp_path / "knn.index", values, ids=tmp_path / "wrong.npy")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("kind", ["IVF4,Flat", "IDMap,Flat", "IDMap2,IVF4,Flat"])
@pytest.mark.parametrize(
    ("ids", "text"),
    [
        (np.append(np.arange(N - 1), 7), "expected an id of its own for each vector, found id 7 more than once"),
        (np.arange(N) - 3, "expected ids of 0 or more, found -3"),
        (np.arange(N) * 2, "found 120 values and ids from 0 to 238, no rows of it"),
    ],
)
def test_ids_that_fit_no_values_are_refused_before_anything_is_written(
    kind: str, ids: np.ndarray, text: str, tmp_path: Path
) -> None:
    write(index_of(kind, vectors(N), ids), tmp_path / "knn.index")
    with pytest.raises(ValueError, match=text):
        import_faiss(tmp_path / "store", tmp_path / "knn.index", values_file(tmp_path, np.arange(N)))
    assert names(tmp_path) == ["knn.index", "values.npy"]


def test_what_was_removed_from_an_index_is_not_there(tmp_path: Path) -> None:
    keys = vectors(N)
    gone = np.array([0, 1, 17, 59])
    left = np.setdiff1d(np.arange(N), gone)
    index = index_of("IVF4,Flat", keys)
    index.remove_ids(gone)
    write(index, tmp_path / "knn.index")
    found = import_faiss(tmp_path / "store", tmp_path / "knn.index", values_file(tmp_path, np.arange(N)))
    assert (found.entries, found.unused) == (N - 4, 4)
    got, of = stored(tmp_path / "store")
    np.testing.assert_array_equal(got, keys[left])
    np.testing.assert_array_equal(of, left)
    with pytest.raises(ValueError, match="no rows of it"):  # whose values would be misplaced from 17 on
        import_faiss(tmp_path / "other", tmp_path / "knn.index", values_file(tmp_path, left))
    flat = index_of("Flat", keys)
    flat.remove_ids(gone)  # this one counts anew
    write(flat, tmp_path / "flat.index")
    with pytest.raises(ValueError, match="a value for each of 116 vectors with ids 0 to 115, found 120"):
        import_faiss(tmp_path / "other", tmp_path / "flat.index", values_file(tmp_path, np.arange(N)))
    mapped = index_of("IDMap,IVF4,Flat", keys)
    mapped.remove_ids(gone)  # FAISS's own search answers wrong ids from here on
    write(mapped, tmp_path / "mapped.index")
    with pytest.raises(ValueError, match="IndexIDMap from which vectors were removed"):
        import_faiss(tmp_path / "other", tmp_path / "mapped.index", values_file(tmp_path, np.arange(N)))


def test_the_metric_is_that_of_the_index_or_refused(tmp_path: Path) -> None:
    keys, values = vectors(N), values_file(tmp_path, np.arange(N))
    for metric, expected in [(faiss.METRIC_INNER_PRODUCT, "ip"), (faiss.METRIC_L2, "l2")]:
        index = faiss.index_factory(D, "IVF4,Flat", metric)
        index.train(vectors(300))
        index.add(keys)
        write(index, tmp_path / "knn.index")
        import_faiss(tmp_path / expected, tmp_path / "knn.index", values)
        with Datastore.open(tmp_path / expected) as store:
            assert store.metric == expected
            index.nprobe = 4
            np.testing.assert_array_equal(store.search(keys, 5).ids, index.search(keys, 5)[1])
    other = faiss.IndexFlat(D, faiss.METRIC_L1)
    other.add(keys)
    write(other, tmp_path / "knn.index")
    with pytest.raises(ValueError, match="expected squared L2 or inner product, found FAISS metric METRIC_L1"):
        import_faiss(tmp_path / "store", tmp_path / "knn.index", values)


def test_keys_are_kept_as_exactly_as_the_index_has_them(tmp_path: Path) -> None:
    values = values_file(tmp_path, np.arange(N))
    for kind, given, kept in [("Flat", None, "float32"), ("PQ4x4", None, "float16"), ("Flat", "float16", "float16")]:
        write(index_of(kind, vectors(N)), tmp_path / "knn.index")
        import_faiss(tmp_path / "store", tmp_path / "knn.index", values, keep_keys=given, overwrite=True)
        with Datastore.open(tmp_path / "store") as store:
            assert store.info()["keep_keys"] == kept


def test_an_empty_index_is_refused(tmp_path: Path) -> None:
    write(index_of("IVF4,Flat", vectors(0)), tmp_path / "knn.index")
    with pytest.raises(ValueError, match=r"expected vectors, found an index of none \(IndexIVFFlat\)"):
        import_faiss(tmp_path / "store", tmp_path / "knn.index", values_file(tmp_path, np.arange(1)))
    assert not (tmp_path / "store").exists()


def test_vectors_that_are_not_finite_are_refused_by_their_value_s_row(tmp_path: Path) -> None:
    keys = vectors(70_000)
    keys[66_000, 3] = np.inf
    keys[69_000] = np.nan
    write(index_of("Flat", keys), tmp_path / "knn.index")
    with pytest.raises(ValueError, match="vector of value 66000: expected finite numbers, found inf"):
        import_faiss(tmp_path / "store", tmp_path / "knn.index", values_file(tmp_path, np.arange(70_000)))
    assert names(tmp_path) == ["knn.index", "values.npy"]


def test_lists_on_disk_are_read_beside_the_index_and_nowhere_else(tmp_path: Path) -> None:
    keys, (here, there) = vectors(N), (tmp_path / "here", tmp_path / "there")
    here.mkdir()
    there.mkdir()
    index = index_of("IVF4,Flat", keys)
    lists = faiss.OnDiskInvertedLists(4, index.code_size, str(there / "lists.ivfdata"))
    lists.merge_from_1(index.invlists)
    index.replace_invlists(lists)
    write(index, there / "knn.index")
    values = values_file(tmp_path, np.arange(N))
    import_faiss(tmp_path / "store", there / "knn.index", values)
    np.testing.assert_array_equal(stored(tmp_path / "store")[0], keys)
    shutil.copy(there / "knn.index", here)
    with pytest.raises(FaissError, match=r"lists\.ivfdata"):
        import_faiss(tmp_path / "other", here / "knn.index", values)
    assert not (tmp_path / "other").exists()


def test_an_error_leaves_the_store_that_was_there(tmp_path: Path) -> None:
    values = values_file(tmp_path, np.arange(70_000))
    keys = vectors(70_000)
    write(index_of("Flat", keys), tmp_path / "knn.index")
    import_faiss(tmp_path / "store", tmp_path / "knn.index", values)
    keys[69_000] = np.nan
    write(index_of("Flat", keys), tmp_path / "knn.index")
    with pytest.raises(StoreError, match="expected no store, found one"):
        import_faiss(tmp_path / "store", tmp_path / "knn.index", values)
    with pytest.raises(ValueError, match="vector of value 69000"):
        import_faiss(tmp_path / "store", tmp_path / "knn.index", values, overwrite=True)
    assert len(stored(tmp_path / "store")[0]) == 70_000
    (tmp_path / "store" / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"found notes\.txt; move it away"):
        import_faiss(tmp_path / "store", tmp_path / "knn.index", values, overwrite=True)
    (tmp_path / "store" / "notes.txt").unlink()
    keys = keys[:5]
    write(index_of("Flat", keys), tmp_path / "knn.index")
    import_faiss(tmp_path / "store", tmp_path / "knn.index", values_file(tmp_path, np.arange(5)), overwrite=True)
    assert len(stored(tmp_path / "store")[0]) == 5
    assert names(tmp_path) == ["knn.index", "store", "values.npy"]


def test_files_that_are_no_index_are_refused_in_words(tmp_path: Path) -> None:
    values = values_file(tmp_path, np.arange(N))
    path = write(index_of("IVF4,Flat", vectors(N)), tmp_path / "knn.index")
    whole = path.read_bytes()
    for content, error, text in [
        (b"", ValueError, "found an empty file"),
        (b"\x93NUMPY garbage", FaissError, "FAISS refuses it: Index type"),
        (b"I\x1b[m" + bytes(100), FaissError, r"FAISS refuses it: Index type .*I\\x1b\[m"),
        (b"IxFx" + bytes(100), FaissError, "a FAISS index that is whole, found that FAISS refuses it: Index type"),
        (whole[:2000], FaissError, "a FAISS index that is whole"),
    ]:
        path.write_bytes(content)
        with pytest.raises(error, match=text) as caught:
            import_faiss(tmp_path / "store", path, values)
        assert str(path) in str(caught.value)
        assert "index_read" not in str(caught.value)
    assert names(tmp_path) == ["knn.index", "values.npy"]


@pytest.mark.started
@pytest.mark.parametrize("moment", ["open", "read"])
def test_the_death_of_the_process_is_an_error_and_leaves_nothing(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = vectors(200_000)
    write(index_of("Flat", keys), tmp_path / "knn.index")
    values = values_file(tmp_path, np.arange(200_000))
    started = []
    start, rows = faiss_index.start, faiss_index.FaissIndex.rows

    def watched(printed):
        started.append(start(printed))
        if moment == "open":
            started[-1].send_signal(signal.SIGABRT)
        return started[-1]

    def killed(self):
        found = rows(self)
        if found[0, 0] != keys[0, 0]:
            started[-1].kill()
        return found

    monkeypatch.setattr(faiss_index, "start", watched)
    if moment == "read":
        monkeypatch.setattr(faiss_index.FaissIndex, "rows", killed)
    by = "SIGABRT, as it does over a damaged file" if moment == "open" else "SIGKILL: was it killed, or is memory short"
    with pytest.raises(FaissError, match=f"the process that reads it for FAISS was ended by {by}"):
        import_faiss(tmp_path / "store", tmp_path / "knn.index", values)
    assert names(tmp_path) == ["knn.index", "values.npy"]
    assert started[-1].poll() is not None
    said = run("import", tmp_path / "knn.index", values, "--faiss", "--out", tmp_path / "store", code=1).stderr
    assert by in said
    assert names(tmp_path) == ["knn.index", "values.npy"]


@pytest.mark.started
@pytest.mark.parametrize("answer", ["b'I' + (2**60).to_bytes(8, 'little')", "b'V' + bytes(8)", "b'I' + bytes(4)"])
def test_an_answer_that_makes_no_sense_is_an_error(
    answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(index_of("Flat", vectors(N)), tmp_path / "knn.index")
    code = f"import os, sys; sys.stdin.buffer.read(1); os.write(1, {answer}); os._exit(0)"

    def start(printed):
        pipe = subprocess.PIPE
        return subprocess.Popen([sys.executable, "-I", "-c", code], stdin=pipe, stdout=pipe, stderr=printed)

    monkeypatch.setattr(faiss_index, "start", start)
    with pytest.raises(FaissError, match=r"the process that reads it for FAISS|an answer of"):
        import_faiss(tmp_path / "store", tmp_path / "knn.index", values_file(tmp_path, np.arange(N)))
    assert names(tmp_path) == ["knn.index", "values.npy"]


@pytest.mark.started
def test_the_process_takes_no_module_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "faiss.py").write_text("raise SystemExit('foreign code')")
    (tmp_path / "json.py").write_text("raise SystemExit('foreign code')")
    monkeypatch.chdir(tmp_path)
    write(index_of("Flat", vectors(N)), tmp_path / "knn.index")
    found = import_faiss("store", "knn.index", values_file(tmp_path, np.arange(N)))
    assert found.entries == N


@pytest.mark.started
def test_without_faiss_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(index_of("Flat", vectors(N)), tmp_path / "knn.index")
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "faiss.py").write_text("raise ImportError('not here')")
    monkeypatch.syspath_prepend(str(hidden))
    with pytest.raises(ImportError, match="pip install faiss-cpu"):
        import_faiss(tmp_path / "store", tmp_path / "knn.index", values_file(tmp_path, np.arange(N)))


@pytest.mark.started
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="process tables differ")
def test_the_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    write(index_of("Flat", vectors(N)), tmp_path / "knn.index")
    code = (
        "import os, signal, sys; from knnlm.exchange.faiss_index import FaissIndex; found = FaissIndex(sys.argv[1]);"
        "print(found._process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "knn.index"],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    process = Path(f"/proc/{int(done.stdout)}")
    for _ in range(1000):
        if not process.exists() or "State:\tZ" in (process / "status").read_text():
            break
        subprocess.run(["sleep", "0.01"], check=True)
    else:
        pytest.fail("it lives")


@pytest.mark.started
def test_the_command_says_what_it_took(tmp_path: Path) -> None:
    write(index_of("IVF4,PQ4x4", vectors(N), np.arange(N) + 5), tmp_path / "knn.index")
    values = values_file(tmp_path, np.where(np.arange(N) % 10 == 0, -100, np.arange(N)))
    out = ("--faiss", "--out", tmp_path / "store")
    said = run("import", tmp_path / "knn.index", values, *out, code=1).stderr
    assert "value 0: expected 0 or more, found -100, and 11 more below 0" in said
    found = run_json("import", tmp_path / "knn.index", values, *out, "--ignore", -100)
    assert (found["entries"], found["ignored"], found["matched"], found["lossy"]) == (108, 12, "order of ids", True)
    said = run("import", tmp_path / "knn.index", values, *out, "--ignore", -100, "--overwrite").stdout
    for part in [
        "108 entries of dimension 16",
        "left out 12 rows of the value -100",
        "values are taken in their order",
        "what the index decodes (IndexIVFPQ), not the original ones",
    ]:
        assert part in said
    for option, value in [("--dim", D), ("--metric", "l2"), ("--key-dtype", "float16")]:
        assert (
            "is for a file of keys" in run("import", tmp_path / "knn.index", values, *out, option, value, code=2).stderr
        )
    keys = tmp_path / "keys.npy"
    np.save(keys, vectors(N))
    assert "is for a FAISS index" in run("import", keys, values, "--keys", "float16", "--out", "o", code=2).stderr
