"""Worker processes of the one pass: the bytes of one process, and what happens when one dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from one_pass_corpus import DIM, KilledError, build, hashes, load_tiny
from tiny_lm import tiny

from knnlm import Datastore
from knnlm.build.encode import Encoder, encoded
from knnlm.model.key_spec import KeySpec


@pytest.fixture(scope="module")
def loaded():
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


class Told:
    """Stands for the pool: what a worker would be started with, and how many threads its model then has."""

    def __init__(self, workers, context, start, given):
        self.given = given

    def shutdown(self, cancel_futures):
        pass


@pytest.mark.parametrize(("cores", "workers", "threads", "each"), [(8, 3, None, 2), (2, 4, None, 1), (8, 2, 6, 6)])
def test_models_of_workers_share_the_cores(monkeypatch, cores, workers, threads, each):
    started = []
    monkeypatch.setattr(
        "knnlm.build.encode.ProcessPoolExecutor", lambda *given: started.append(Told(*given)) or started[0]
    )
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    encoder = Encoder(None, None, SimpleNamespace(path=""), Path(), None, threads, {})
    with encoded(encoder, iter(()), workers, load_tiny):
        assert started[0].given[2] == each


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
def test_a_worker_that_is_killed_ends_the_build_which_goes_on_later(loaded, tmp_path, monkeypatch):
    killed = []

    def slowly(connection):  # closing one twice, from two threads, is then no matter of luck
        time.sleep(0.2)
        os.close(connection._handle)

    monkeypatch.setattr(Connection, "_close", slowly)

    def kill(stage, done, total):
        if stage == "encode" and not killed:
            killed.extend(multiprocessing.active_children())
            os.kill(killed[0].pid, signal.SIGKILL)

    with pytest.raises(RuntimeError, match=r"one died .*out of memory.*what is done so far stays.*fewer workers"):
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
        "import functools, pathlib, sys; import test_one_pass_workers as t\n"
        "if __name__ == '__main__':\n"
        "    folder = pathlib.Path(sys.argv[1])\n"
        "    load = functools.partial(t.load_and_tell, folder)\n"
        "    t.build(folder / 'store', t.tiny(d=t.DIM), workers=1, load=load)\n"
    )
    (tmp_path / "program.py").write_text(program)
    path = os.pathsep.join(sys.path)
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


def test_an_interrupted_build_goes_on_with_workers(loaded, tmp_path):
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
