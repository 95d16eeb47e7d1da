"""One pass from text to codes: no raw key on disk, and an interrupted build ends with the bytes of a whole one."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_lm import LETTERS, tiny

from knnlm import Datastore, StoreError
from knnlm.dumping import dump
from knnlm.encoding import Encoder, encoded
from knnlm.identity import KeySpec
from knnlm.keys import TokenDocument, iterate_as
from knnlm.one_pass import build_in_one_pass
from knnlm.parts import parts_of, placed, sample_keys
from knnlm.truth import Truth

DIM = 32


def documents():
    rng = np.random.default_rng(0)
    return [
        TokenDocument(f"doc {i}", rng.integers(1, len(LETTERS), 40 + i).astype(np.uint32), {"i": i}) for i in range(40)
    ]


def hashes(path):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in Path(path).iterdir() if p.name != "lock"}


def hashes_of_all(path):
    files = (p for p in Path(path).rglob("*") if p.is_file())
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files if p.name != "lock"}


def build(path, loaded, documents=documents, **options):
    keys = KeySpec(window=24, key_dtype="float32").resolved(loaded.context)
    chosen = {"keys": keys, "dim": DIM, "attributes": {"a": 1}, "part_tokens": 300, "nlist": 8, **options}
    return build_in_one_pass(path, loaded, documents, **chosen)


@pytest.fixture(scope="module")
def loaded():
    return tiny(d=DIM)


@pytest.fixture(scope="module")
def whole(loaded, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "store"
    return path, build(path, loaded)


def test_the_store_holds_every_token_and_no_raw_key(whole):
    path, result = whole
    with Datastore.open(path) as store:
        texts = documents()
        assert (len(store), result.tokens) == (sum(len(d.tokens) for d in texts),) * 2
        assert [d.name for d in store.documents()] == [d.name for d in texts]
        np.testing.assert_array_equal(store.values(0, len(store)), np.concatenate([d.tokens for d in texts]))
        info = store.info()
        assert (info["indexed"], info["entries_with_keys"]) == (len(store), 0)
        assert "Keys" not in info["sections"]
        assert store.verify() == []
        assert store.search(np.zeros(DIM), 5).found.all()


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_build_that_is_killed_goes_on_to_the_same_bytes(whole, loaded, tmp_path, after):
    commits = 0

    def kill(stage, done, total):
        nonlocal commits
        commits += stage == "encode"
        if commits > after:
            raise KilledError

    with pytest.raises(KilledError):
        build(tmp_path / "store", loaded, progress=kill)
    result = build(tmp_path / "store", loaded)
    assert 0 < result.resumed_parts < result.parts
    assert hashes(tmp_path / "store") == hashes(whole[0])


def test_another_text_does_not_go_on(whole, loaded):
    with pytest.raises(ValueError, match="found another"):
        build(whole[0], loaded, attributes={"a": 2})


def renamed(texts):
    texts[30] = TokenDocument("another name", texts[30].tokens, texts[30].metadata)


def swapped(texts):
    texts[3], texts[35] = texts[35], texts[3]


def edited(texts):
    tokens = texts[2].tokens.copy()
    tokens[5] = tokens[5] % (len(LETTERS) - 1) + 1
    texts[2] = TokenDocument(texts[2].name, tokens, texts[2].metadata)


@pytest.mark.parametrize("change", [renamed, swapped, edited])
def test_an_interrupted_build_does_not_go_on_with_a_changed_text(whole, loaded, tmp_path, change):
    changed = documents()
    change(changed)

    def kill(stage, done, total):
        if stage == "encode" and done > 600:
            raise KilledError

    with pytest.raises(KilledError):
        build(tmp_path / "store", loaded, progress=kill)
    before = hashes_of_all(tmp_path / "store")
    with pytest.raises(ValueError, match=r"expected a store of this text.*found another; remove it"):
        build(tmp_path / "store", loaded, lambda: changed)
    assert hashes_of_all(tmp_path / "store") == before
    assert build(tmp_path / "store", loaded).resumed_parts > 1
    assert hashes(tmp_path / "store") == hashes(whole[0])


@pytest.mark.parametrize("moment", ["count tokens", "sample", "encode", "merge lists"])
def test_a_second_build_of_the_same_place_is_refused_and_deletes_nothing(whole, loaded, tmp_path, moment):
    refused = []

    def look(stage, done, total):
        if stage != moment or (stage == "count tokens" and not (tmp_path / "store").exists()):
            return
        before = hashes_of_all(tmp_path / "store")
        for other in ({}, {"seed": 1}, {"documents": lambda: pytest.fail("the text was read")}):
            with pytest.raises(StoreError, match="another writer"):
                build(tmp_path / "store", loaded, **other)
        with Datastore.open(tmp_path / "store") as store, pytest.raises(StoreError, match="another writer"):
            store.delete("doc 0")
        assert hashes_of_all(tmp_path / "store") == before
        refused.append(stage)

    if moment == "count tokens":  # that of a run that goes on
        Datastore.create(tmp_path / "store", dim=DIM).close()
    build(tmp_path / "store", loaded, progress=look)
    assert refused
    assert hashes(tmp_path / "store") == hashes(whole[0])
    with Datastore.open(tmp_path / "store") as store:
        store.set_attributes({})  # the lock is free


def test_two_builds_that_begin_at_once_make_one_store(whole, loaded, tmp_path):
    begun = False

    def begin(stage, done, total):
        nonlocal begun
        if not begun:  # while the first one counts, another process makes the store
            begun = True
            build(tmp_path / "store", loaded)

    result = build(tmp_path / "store", loaded, progress=begin)
    assert result.parts == result.resumed_parts
    assert hashes(tmp_path / "store") == hashes(whole[0])


def test_a_text_that_loses_a_document_while_it_is_built_is_refused(loaded, tmp_path):
    calls = 0

    def shrinking():
        nonlocal calls
        calls += 1
        return documents()[: 40 if calls < 3 else 39]

    with pytest.raises(ValueError, match="the text changed meanwhile"):
        build(tmp_path / "store", loaded, shrinking)


def test_a_finished_build_does_nothing_when_its_store_has_grown(loaded, tmp_path):
    build(tmp_path / "store", loaded)
    with Datastore.open(tmp_path / "store") as store:
        dump(loaded, [TokenDocument("later", documents()[0].tokens)], store)
    before = hashes(tmp_path / "store")
    result = build(tmp_path / "store", loaded)
    assert result.parts == result.resumed_parts
    assert hashes(tmp_path / "store") == before


def test_parts_are_whole_documents():
    parts = list(parts_of(placed(documents()), 300))
    assert [d.name for part in parts for d in part.documents] == [d.name for d in documents()]
    assert all(part.tokens >= 300 for part in parts[:-1])
    assert [part.number for part in parts] == list(range(len(parts)))
    assert [part.start for part in parts[1:]] == np.cumsum([part.tokens for part in parts])[:-1].tolist()


def test_a_sample_is_a_part_of_the_keys(loaded):
    keys = KeySpec(window=24, key_dtype="float32").resolved(loaded.context)
    total = sum(len(d.tokens) for d in documents())
    everything, ids = sample_keys(loaded, lambda: placed(documents()), keys, total, total, 0)
    assert everything.shape == (total, DIM)
    np.testing.assert_array_equal(ids, np.arange(total))
    some, ids = sample_keys(loaded, lambda: placed(documents()), keys, 500, total, 0)
    assert 100 < len(some) <= 500
    np.testing.assert_allclose(some, everything[ids], atol=1e-4)


def load_tiny():
    """The model, for worker processes."""
    torch.set_num_threads(1)
    return tiny(d=DIM)


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_worker_processes_give_the_bytes_of_one(loaded, tmp_path, metric):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the bytes depend on the model's threads
    try:
        build(tmp_path / "one", loaded, metric=metric)
    finally:
        torch.set_num_threads(threads)
    result = build(tmp_path / "two", loaded, metric=metric, workers=2, load=load_tiny)
    assert (result.parts, result.resumed_parts) == (8, 0)
    assert hashes(tmp_path / "two") == hashes(tmp_path / "one")


def test_a_sample_of_a_long_document_is_from_anywhere_in_it(loaded):
    keys = KeySpec(window=24, context=8, key_dtype="float32").resolved(loaded.context)
    book = [TokenDocument("book", np.random.default_rng(3).integers(1, len(LETTERS), 30000).astype(np.uint32))]
    everything, ids = sample_keys(loaded, lambda: placed(book), keys, 30000, 30000, 0)
    np.testing.assert_array_equal(ids, np.arange(30000))
    starts = set()
    for seed in range(8):
        some, ids = sample_keys(loaded, lambda: placed(book), keys, 4000, 30000, seed)
        assert (np.diff(ids) > 0).all()
        if ids[-1] - ids[0] < 6000:  # else chance drew no stretch, and all of it was taken
            assert len(ids) == 4000
            starts.add(int(ids[0]) // 1000)
            later = ids >= ids[0] + 24  # the first window does not know the token before it
            np.testing.assert_allclose(some[later], everything[ids[later]], atol=1e-4)
            np.testing.assert_array_equal(sample_keys(loaded, lambda: placed(book), keys, 4000, 30000, seed)[1], ids)
    assert starts
    assert starts != {0}


class Told:
    """Stands for the pool: what a worker would be started with, and how many threads its model then has."""

    def __init__(self, workers, context, start, given):
        self.given = given

    def shutdown(self, cancel_futures):
        pass


@pytest.mark.parametrize(("cores", "workers", "threads", "each"), [(8, 3, None, 2), (2, 4, None, 1), (8, 2, 6, None)])
def test_models_of_workers_share_the_cores(monkeypatch, cores, workers, threads, each):
    started = []
    monkeypatch.setattr("knnlm.encoding.ProcessPoolExecutor", lambda *given: started.append(Told(*given)) or started[0])
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    encoder = Encoder(None, None, SimpleNamespace(path=""), Path(), None, threads, {})
    with encoded(encoder, iter(()), workers, load_tiny):
        assert started[0].given[1] == each


def load_all_cores():
    """A model whose loading takes all cores for torch, and that says how many it has when it runs."""
    assert torch.get_num_threads() == max(1, (os.cpu_count() or 1) // 2)
    torch.set_num_threads(64)
    loaded = tiny(d=DIM)

    def check(module, inputs):
        assert torch.get_num_threads() == max(1, (os.cpu_count() or 1) // 2)

    loaded.model.register_forward_pre_hook(check)
    return loaded


def test_a_worker_takes_its_share_of_the_cores_whatever_loading_does(loaded, tmp_path):
    assert build(tmp_path / "store", loaded, workers=2, load=load_all_cores).parts == 8


def load_damaged():
    raise OSError("the weights are damaged")


def test_an_error_of_a_worker_that_loads_is_shown(loaded, tmp_path):
    with pytest.raises(RuntimeError, match=r"cannot start: OSError: the weights are damaged"):
        build(tmp_path / "store", loaded, workers=2, load=load_damaged)
    assert multiprocessing.active_children() == []


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_a_worker_that_is_killed_ends_the_build_which_goes_on_later(loaded, tmp_path):
    killed = []

    def kill(stage, done, total):
        if stage == "encode" and not killed:
            killed.extend(multiprocessing.active_children())
            os.kill(killed[0].pid, signal.SIGKILL)

    with pytest.raises(RuntimeError, match=r"one died .*out of memory.*what is done so far stays.*fewer --workers"):
        build(tmp_path / "store", loaded, workers=1, load=load_slow, progress=kill)
    assert multiprocessing.active_children() == []
    assert 0 < build(tmp_path / "store", loaded).resumed_parts < 8
    with Datastore.open(tmp_path / "store") as store:
        assert store.verify() == []


def load_slow():
    """A model that takes its time for a part."""
    model = load_tiny()
    model.model.register_forward_pre_hook(lambda module, inputs: time.sleep(0.5))
    return model


def load_and_tell(folder):
    (folder / f"{os.getpid()}.pid").touch()
    return load_slow()


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_workers_end_with_the_process_that_started_them(tmp_path):
    program = (
        "import functools, pathlib, sys; import test_one_pass as t\n"
        "if __name__ == '__main__':\n"
        "    folder = pathlib.Path(sys.argv[1])\n"
        "    load = functools.partial(t.load_and_tell, folder)\n"
        "    t.build(folder / 'store', t.tiny(d=t.DIM), workers=1, load=load)\n"
    )
    (tmp_path / "program.py").write_text(program)
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    started = subprocess.Popen(
        [sys.executable, tmp_path / "program.py", tmp_path], env={**os.environ, "PYTHONPATH": path}
    )
    try:
        wait_for(lambda: list(tmp_path.glob("*.pid")) or started.poll() is not None)
        (worker,) = (int(told.stem) for told in tmp_path.glob("*.pid"))
    finally:
        started.kill()
        started.wait()
    wait_for(lambda: not runs(worker))


def wait_for(reached):
    end = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.05)


def runs(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat")
    return not (state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] == "Z")


def test_an_interrupted_build_goes_on_with_workers(whole, loaded, tmp_path):
    def kill(stage, done, total):
        if stage == "encode":
            raise KilledError

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        build(tmp_path / "one", loaded)
    finally:
        torch.set_num_threads(threads)
    with pytest.raises(KilledError):
        build(tmp_path / "store", loaded, workers=1, load=load_tiny, progress=kill)
    (tmp_path / "store" / "parts" / "lists-00000099-0.seg").write_bytes(b"left by a worker")
    assert build(tmp_path / "store", loaded, workers=1, load=load_tiny).resumed_parts == 1
    assert hashes(tmp_path / "store") == hashes(tmp_path / "one")


@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_raw_keys_are_kept_if_asked(loaded, tmp_path, kind):
    keys = KeySpec(window=24, key_dtype=kind).resolved(loaded.context)
    kept = {"keys": keys, "keep_keys": True}

    def kill(stage, done, total):
        if stage == "encode" and done > 900:
            raise KilledError

    build(tmp_path / "one", loaded, **kept)
    with pytest.raises(KilledError):
        build(tmp_path / "two", loaded, progress=kill, **kept)
    (tmp_path / "two" / "parts" / "keys-00000099.npy").write_bytes(b"left by a worker")
    assert build(tmp_path / "two", loaded, **kept).resumed_parts > 1
    assert hashes(tmp_path / "two") == hashes(tmp_path / "one")
    with Datastore.open(tmp_path / "one") as store, Datastore.create(tmp_path / "raw", dim=DIM, keep_keys=kind) as raw:
        dump(loaded, documents(), raw, keys=keys)
        info = store.info()
        assert (info["keep_keys"], info["entries_with_keys"], info["indexed"]) == (kind, len(raw), len(raw))
        np.testing.assert_allclose(
            store.keys(0, len(raw)), raw.keys(0, len(raw)), atol=1e-2 if kind == "float16" else 1e-4
        )
        assert store.verify() == []
        ids = dump(loaded, [TokenDocument("later", documents()[0].tokens)], store, keys=keys)
        assert ids.tokens == store.info()["indexed"] - len(raw)
        queries = store.keys(0, 50)
        assert (store.search(queries, 1, exact=True).ids[:, 0] < len(raw)).all()
        store.build(retrain=True, nlist=4)
        assert store.info()["nlist"] == 4
    with pytest.raises(ValueError, match="found another"):
        build(tmp_path / "one", loaded, keys=keys)


def test_workers_keep_the_raw_keys_of_one(loaded, tmp_path):
    keys = KeySpec(window=24, key_dtype="float16").resolved(loaded.context)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        build(tmp_path / "one", loaded, keys=keys, keep_keys=True)
    finally:
        torch.set_num_threads(threads)
    build(tmp_path / "two", loaded, keys=keys, keep_keys=True, workers=1, load=load_tiny)
    assert hashes(tmp_path / "two") == hashes(tmp_path / "one")


class Full:
    """A file on a disk without room."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("name", ["keys-00000002.npy", "truth-2.tmp"])
def test_a_full_disk_is_an_error_that_names_the_file_and_the_build_goes_on_later(loaded, tmp_path, monkeypatch, name):
    kept = {"keys": KeySpec(window=24, key_dtype="float16").resolved(loaded.context), "keep_keys": True}

    def full(path, mode):
        file = open(path, mode)  # noqa: SIM115
        return Full(file) if Path(path).name == name else file

    with monkeypatch.context() as patched:
        patched.setattr("knnlm.staging.open", full, raising=False)
        with pytest.raises(OSError, match="No space left") as caught:
            build(tmp_path / "store", loaded, **kept)
    assert (caught.value.errno, Path(caught.value.filename).name) == (errno.ENOSPC, name)
    assert build(tmp_path / "store", loaded, **kept).resumed_parts == (2 if name.startswith("keys") else 1)
    with Datastore.open(tmp_path / "store") as store:
        assert store.verify() == []


@pytest.mark.skipif(os.name == "nt", reason="no limit of file size there")
def test_a_file_too_large_is_an_error_and_no_signal(tmp_path):
    program = (
        "import resource, signal, sys; import test_one_pass as t\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "loaded = t.tiny(d=t.DIM)\n"
        "keys = t.KeySpec(window=24, key_dtype='float32').resolved(loaded.context)\n"
        "limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))\n"
        "size = lambda stage, done, total: stage != 'encode' or limit()\n"
        "t.build(sys.argv[1], loaded, keys=keys, keep_keys=True, progress=size)\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "store"],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "OSError: [Errno 27] File too large" in done.stderr
    assert "keys-00000001.npy" in done.stderr.splitlines()[-1]


def test_the_state_of_the_truth_is_on_disk_for_good(tmp_path, monkeypatch):
    synced = []
    real = os.fsync

    def watched(file):
        synced.append(os.fstat(file).st_ino)
        real(file)

    monkeypatch.setattr("os.fsync", watched)
    keys = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    truth = Truth.choose(keys, np.arange(50), 50, "l2")
    truth.save(tmp_path, 3)
    assert synced[0] == (tmp_path / "truth-3.npz").stat().st_ino
    assert os.name != "posix" or synced[1:] == [tmp_path.stat().st_ino]
    np.testing.assert_array_equal(Truth.load(tmp_path, 3).queries, truth.queries)


def test_keys_are_made_in_the_arithmetic_that_was_asked_for(loaded, tmp_path, monkeypatch):
    asked = []

    def watched(*arguments, dtype=None, **options):
        asked.append(dtype)
        return iterate_as(*arguments, dtype=dtype, **options)

    monkeypatch.setattr("knnlm.parts.iterate_as", watched)
    monkeypatch.setattr("knnlm.encoding.iterate_as", watched)
    keys = KeySpec(window=24, key_dtype="float32", autocast="bfloat16").resolved(loaded.context)
    build(tmp_path / "store", loaded, keys=keys)
    assert set(asked) == {torch.bfloat16}


@pytest.mark.parametrize("stage", ["merge lists", "measure recall"])
def test_a_build_killed_after_its_last_part_ends_with_the_same_bytes(large, tmp_path, stage):
    path, _, model = large

    def kill(found, done, total):
        if found == stage:
            raise KilledError

    with pytest.raises(KilledError):
        build_large(tmp_path / "store", model, progress=kill)
    assert (tmp_path / "store" / "parts").is_dir()
    result = build_large(tmp_path / "store", model)
    assert result.resumed_parts == result.parts
    assert hashes(tmp_path / "store") == hashes(path)


def many_documents():
    rng = np.random.default_rng(1)
    return [TokenDocument(f"doc {i}", rng.integers(1, len(LETTERS), 700).astype(np.uint32)) for i in range(40)]


def build_large(path, loaded, **options):
    keys = KeySpec(window=24, key_dtype="float32").resolved(loaded.context)
    chosen = {"keys": keys, "dim": DIM, "attributes": {}, "part_tokens": 5000, "nlist": 150, "threads": 2, **options}
    return build_in_one_pass(path, loaded, many_documents, **chosen)


@pytest.fixture(scope="module")
def large(tmp_path_factory, loaded):
    """A store that is not scanned as a whole, so that its recall is measured."""
    path = tmp_path_factory.mktemp("large") / "store"
    return path, build_large(path, loaded), loaded


def test_the_recall_of_codes_is_measured_without_raw_keys(large, tmp_path):
    path, _, loaded = large
    keys = KeySpec(window=24, key_dtype="float32").resolved(loaded.context)
    with Datastore.open(path) as store, Datastore.create(tmp_path / "raw", dim=DIM, keep_keys="float32") as raw:
        measured = {row["k"]: row for row in store.info()["calibration"]}
        assert set(measured) == {8, 64, 1024}
        dump(loaded, many_documents(), raw, keys=keys)
        raw.build(nlist=150)  # the sample was all of the text: the same codebook, queries and neighbours
        assert raw.info()["calibration"] == store.info()["calibration"]
        goal = min(0.9, measured[64]["best_recall"] - 0.02)
        rows = np.arange(100, len(raw), 97)
        own = np.stack([rows, rows + 1], -1)
        queries = np.concatenate([raw.keys(i, i + 1) for i in rows])
        exact = raw.search(queries, 64, exact=True, exclude=own).ids
        found = store.search(queries, 64, recall=goal, exclude=own).ids
        share = np.mean([np.isin(a, b).mean() for a, b in zip(found, exact, strict=True)])
        assert share > goal - 0.05
        with pytest.raises(StoreError, match=r"codes only.*measured when it was built"):
            store.calibrate()
    assert not (path / "parts").exists()


def test_truth_is_exact_whatever_the_parts():
    rng = np.random.default_rng(0)
    keys = rng.standard_normal((500, 8)).astype(np.float32)
    keys[100:120] = keys[0]  # ties
    ids = np.arange(500)
    for metric in ("l2", "ip"):
        first = Truth.choose(keys, ids, 500, metric)
        assert first.ids.shape == (256, 8)
        assert (first.own[:, 1] - first.own[:, 0]).max() == 15  # its own entry and 500 / 64 on either side
        whole, parts = first.merged(first.nearest(keys, 0)), first
        for start in range(0, 500, 90):
            parts = parts.merged(parts.nearest(keys[start : start + 90], start, threads=2))
        np.testing.assert_array_equal(whole.ids, parts.ids)
        np.testing.assert_array_equal(whole.distances, parts.distances)
        difference = first.queries[:, None] - keys[None]  # (q, n, d)
        score = (difference**2).sum(-1) if metric == "l2" else -first.queries @ keys.T
        own = (ids >= first.own[:, :1]) & (ids < first.own[:, 1:])  # (q, n)
        score[own] = np.inf
        best = np.sort(score, axis=1)[:, :8]
        np.testing.assert_allclose(np.sort(whole.distances if metric == "l2" else -whole.distances), best, atol=1e-4)
        assert not np.take_along_axis(own, whole.ids, 1).any()
