"""One store, many users: threads, forks, spawned processes, pickles, Ctrl-C."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest

from knnlm import Datastore, FormatError, StoreError

KEYS = np.random.default_rng(0).standard_normal((3000, 24)).astype(np.float32)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("shared") / "store"
    with Datastore.create(path, dim=24, keep_keys="float32") as store:
        store.add(KEYS, np.arange(3000), document="d")
        store.build(seed=0)
    return path


def nearest(store, start):
    return store.search(KEYS[start : start + 50], 8, threads=2).ids


def test_searching_from_several_threads(path):
    with Datastore.open(path) as store, ThreadPoolExecutor(6) as pool:
        expected = [nearest(store, i) for i in range(0, 3000, 50)]
        for got, want in zip(pool.map(lambda i: nearest(store, i), range(0, 3000, 50)), expected, strict=True):
            np.testing.assert_array_equal(got, want)


def test_one_thread_adds_while_others_search(tmp_path):
    with Datastore.create(tmp_path / "s", dim=24) as store:
        store.add(KEYS[:500], np.arange(500))
        store.build(seed=0)
        stop = threading.Event()

        def search():
            seen = 0
            while not stop.is_set():
                ids = store.search(KEYS[:20], 600).ids
                assert ids.max() + 1 >= seen  # what one search found the next one finds
                seen = ids.max() + 1
            return seen

        with ThreadPoolExecutor(3) as pool:
            searches = [pool.submit(search) for _ in range(3)]
            for start in range(500, 1000, 50):
                assert store.add(KEYS[start : start + 50], np.arange(50)) == range(start, start + 50)
            stop.set()
            assert all(500 <= s.result() <= 1000 for s in searches)
        assert len(store) == 1000


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python's general warning about threads and fork
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes(path, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    with Datastore.open(path) as store:
        expected = [nearest(store, i) for i in (0, 1000, 2000)]  # our threads run before the fork
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
            got = list(pool.map(nearest, [store] * 3, (0, 1000, 2000)))
        np.testing.assert_array_equal(got, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_inherited_store_works_in_a_forked_child_and_leaves_the_parent_alone(tmp_path):
    with Datastore.create(tmp_path / "s", dim=24) as store:
        store.add(KEYS[:500], np.arange(500))
        expected = nearest(store, 0)
        store.add(KEYS[500:600], np.arange(100))  # not published when the fork happens
        child = os.fork()
        if child == 0:
            code = 1
            try:
                same = np.array_equal(store.search(KEYS[:50], 8, threads=2).ids, expected)
                store.close()
                code = 0 if same else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with Datastore.open(tmp_path / "s") as other, pytest.raises(StoreError):
            other.add(KEYS[:1], [0])  # the child did not give our lock away
        assert len(store) == 600


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_child_does_not_keep_the_lock_that_the_parent_gave_back(tmp_path):
    with Datastore.create(tmp_path / "s", dim=24) as store:
        store.add(KEYS[:500], np.arange(500))
        wait, go = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(go)
            os.read(wait, 1)  # until the parent closes its end: all the time with what it inherited
            os._exit(0)
        os.close(wait)
        store.commit()
        with Datastore.open(tmp_path / "s") as other:
            other.add(KEYS[500:600], np.arange(100))
            other.commit()
        os.close(go)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        store.refresh()
        assert len(store) == 600


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_another_thread_searches_for_the_first_time_leaves_no_child_waiting(tmp_path):
    keys = np.random.default_rng(0).standard_normal((3000, 256), dtype=np.float32)
    with Datastore.create(tmp_path / "s", dim=256) as store:
        store.add(keys, np.arange(3000))
        store.build(nlist=1500, threads=2)  # many centroids, which the first search packs
    for delay in np.linspace(0, 0.03, 12):
        with Datastore.open(tmp_path / "s") as store:
            first = threading.Thread(target=store.search, args=(keys[:1], 5))
            first.start()
            time.sleep(delay)
            child = os.fork()
            if child == 0:
                signal.alarm(60)  # ends a child that waits for ever
                os._exit(0 if store.search(keys[:1], 5).ids[0, 0] == 0 else 1)
            first.join()
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_that_writes_is_told_so(tmp_path):
    with Datastore.create(tmp_path / "s", dim=24) as store:
        store.add(KEYS[:100], np.arange(100))
        child = os.fork()
        if child == 0:
            code = 1
            try:
                store.add(KEYS[:1], [0])
            except StoreError as error:
                code = 0 if error.why == "forked" else 2
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_pickle_is_path_and_generation(tmp_path):
    with Datastore.create(tmp_path / "s", dim=24) as store:
        store.add(KEYS[:100], np.arange(100))
        blob = pickle.dumps(store)
        assert len(blob) < 500
        with pickle.loads(blob) as copy:
            assert (copy.path, copy.generation, len(copy)) == (store.path, store.generation, 100)
        before = store.generation
        store.add(KEYS[100:200], np.arange(100))
        store.commit()
        assert store.generation == before + 1
        try:
            old = pickle.loads(blob)
        except StoreError as error:
            assert str(before) in str(error)  # noqa: PT017
        else:
            with old:
                assert (old.generation, len(old)) == (before, 100)


def test_pickle_of_a_generation_that_is_gone_says_so(tmp_path):
    with Datastore.create(tmp_path / "s", dim=24) as store:
        blob = pickle.dumps(store)
        generation = store.generation
    for manifest in (tmp_path / "s").glob("manifest-*.json"):
        manifest.unlink()
    with pytest.raises((StoreError, FileNotFoundError, FormatError), match=rf"generation {generation}|manifest"):
        pickle.loads(blob)


def test_pickle_of_a_relative_path_survives_a_change_of_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Datastore.create("s", dim=24) as store:
        blob = pickle.dumps(store)
    monkeypatch.chdir("/")
    with pickle.loads(blob) as copy:
        assert copy.dim == 24


def test_open_reader_keeps_its_generation(tmp_path):
    with Datastore.create(tmp_path / "s", dim=24, keep_keys="float32") as writer:
        writer.add(KEYS[:100], np.arange(100))
        writer.commit()
        with Datastore.open(tmp_path / "s") as reader:
            before = reader.search(KEYS[:5], 200).ids
            writer.add(KEYS[100:150], np.arange(50))
            writer.build(seed=0)
            np.testing.assert_array_equal(reader.search(KEYS[:5], 200).ids, before)
            assert len(reader) == 100
    with Datastore.open(tmp_path / "s") as reader:
        assert len(reader) == 150


BUILD = """
    import signal, sys, numpy as np, knnlm
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
    store = knnlm.Datastore.create(sys.argv[1], dim=256, keep_keys="float16")
    rng = np.random.default_rng(0)
    for _ in range(6):
        store.add(rng.standard_normal((10_000, 256), dtype=np.float32), np.arange(10_000))
    store.commit()
    print("building", flush=True)
    try:
        store.build(nlist=8192, progress=lambda *told: print(*told, flush=True))
    except KeyboardInterrupt:
        print("stopped", flush=True)
        assert not store.is_built and len(store) == 60_000 and store.verify() == []
        print("sound", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_stops_a_build_and_leaves_the_store_sound(tmp_path):
    code = textwrap.dedent(BUILD)
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "s")], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child:
        assert child.stdout.readline() == "building\n"
        assert child.stdout.readline()  # the first progress: the work has begun
        child.send_signal(signal.SIGINT)
        out, _ = child.communicate(timeout=120)
    assert out.endswith("stopped\nsound\n"), out
    assert [p.name for p in (tmp_path / "s").iterdir() if "tmp" in p.name] == []


def test_a_long_call_lets_other_threads_run(path):
    ticks = 0
    done = threading.Event()

    def tick():
        nonlocal ticks
        while not done.is_set():
            ticks += 1
            time.sleep(0.001)

    with Datastore.open(path) as store:
        ticker = threading.Thread(target=tick)
        ticker.start()
        store.search(np.repeat(KEYS, 3, axis=0), 64, exact=True, threads=1)
        done.set()
        ticker.join()
    assert ticks > 2  # with the lock held it would have run before and after only
