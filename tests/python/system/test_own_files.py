"""Links that somebody has put where we write: replaced or refused, never followed; outputs whole, named, readable."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_corpus import run, run_json
from method import retrieve
from one_pass_corpus import DIM, KilledError, build, hashes, hashes_of_all
from tiny_lm import texts as tiny_texts
from tiny_lm import tiny

from knnlm import Datastore, StoreError
from knnlm.build.dump import dump
from knnlm.build.one_pass import PARTS
from knnlm.build.retrain import RETRAINING, retrain
from knnlm.demo import run as demo
from knnlm.exchange.arrow import write_arrow
from knnlm.lm.distill import targets, write_parquet, write_safetensors
from knnlm.lm.retriever import Retriever
from knnlm.lm.settings import Settings
from knnlm.model.checkpoint import read_model, save_model, save_state
from knnlm.model.identity import describe
from knnlm.model.key_spec import KeySpec
from knnlm.report.plots import save, tuning_plot
from knnlm.system import own_files
from knnlm.system.growing_array import GrowingArray
from knnlm.system.own_files import create, leftovers, read, remove_tree, replacing, replacing_path, sibling, written
from knnlm.text.tokenizer import Tokenizer

resource: Any = pytest.importorskip("resource")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="links need rights there")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder of somebody else's that no link may lead us to; checked at the end of each test."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "file").write_text("precious")
    return folder


@pytest.fixture(autouse=True)
def _unharmed(victim: Path) -> Any:
    yield
    assert {file.name: file.read_text() for file in victim.iterdir()} == {"file": "precious"}


def dead() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


# -- one file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["victim/file", "victim/new", "victim", "nowhere/at all"])
def test_a_file_is_made_in_place_of_a_link(tmp_path: Path, target: str) -> None:
    path = tmp_path / "file"
    for way in (create, written, replacing):
        path.unlink(missing_ok=True)
        path.symlink_to(tmp_path / target)
        with way(path) as file:
            file.write(b"new")
        assert not path.is_symlink()
        assert path.read_bytes() == b"new"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "victim"]


def test_a_file_is_made_in_place_of_a_pipe_and_of_no_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with written(tmp_path / "pipe") as file:  # opening it would wait for a reader
        file.write(b"new")
    assert (tmp_path / "pipe").read_bytes() == b"new"
    for way in (written, replacing):
        with pytest.raises(IsADirectoryError) as caught, way(tmp_path / "victim"):
            pass
        assert caught.value.filename == str(tmp_path / "victim")


def test_links_pipes_and_devices_are_no_files_of_ours(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "link").symlink_to(victim / "file")
    (tmp_path / "zero").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "zero", "pipe", "victim", "nothing"):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / name)
        assert not own_files.is_file(tmp_path / name)
    (tmp_path / "folder").symlink_to(victim)
    assert not own_files.is_folder(tmp_path / "folder")
    remove_tree(tmp_path / "folder")
    assert not os.path.lexists(tmp_path / "folder")
    with read(victim / "file") as file:
        assert file.read() == b"precious"


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    for way in (replacing, replacing_path):
        with pytest.raises(KilledError), way(path):
            raise KilledError
    assert path.read_text() == "old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "victim"]


def test_what_killed_processes_left_of_an_output_goes_with_the_next_one(tmp_path: Path, victim: Path) -> None:
    path = tmp_path / "out.parquet"
    left = tmp_path / sibling(path, "partial").name.replace(f".{os.getpid()}.", f".{dead()}.")
    left.write_text("half")
    running = tmp_path / sibling(path, "partial").name.replace(f".{os.getpid()}.", ".1.")
    running.write_text("half")
    (tmp_path / f"{left.name}.more").write_text("of somebody else")
    assert leftovers(path) == [left]
    with replacing(path) as file:
        file.write(b"new")
    assert not left.exists()
    assert running.exists()
    assert (tmp_path / f"{left.name}.more").exists()


# -- every output -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    loaded, spec = tiny(), KeySpec(window=24, context=8, key_dtype="float32")
    store = Datastore.create(
        tmp_path_factory.mktemp("lm") / "store", dim=16, keep_keys="float32", attributes=describe(loaded, spec)
    )
    dump(loaded, tiny_texts(), store, keys=spec)
    yield loaded, store
    store.close()


SETTINGS = Settings(temperature=3.0, k=12, exact=True)


def batches(language_model: Any) -> Any:
    loaded, store = language_model
    return targets(loaded, tiny_texts()[:2], Retriever(store, SETTINGS), 3.0)


def our_model() -> tuple[Any, Any]:
    import torch

    from knnlm.model.transformer import TransformerConfig, TransformerLM

    torch.manual_seed(0)
    tokenizer = Tokenizer.train_words(["a b c"])
    return TransformerLM(TransformerConfig(tokenizer.vocab_size, 8, 1, 1, context=8)), tokenizer


def write_state(path: Path) -> None:
    import torch

    model = our_model()[0]
    save_state(path.parent, model, torch.optim.AdamW(model.parameters()), {"a": 1})


def cached(language_model: Any) -> Any:
    loaded, store = language_model
    return retrieve(loaded, tiny_texts()[:2], store, k=4, exact=True)


PLOT = tuning_plot("k", [1.0, 2.0], [3.0, 4.0], 5.0, 2.0, 7)

OUTPUTS: dict[str, Callable[[Path, Any], Any]] = {
    "t.parquet": lambda path, lm: write_parquet(path, batches(lm)),
    "t.safetensors": lambda path, lm: write_safetensors(path, batches(lm)),
    "s.arrow": lambda path, lm: write_arrow(path, lm[1]),
    "cached.safetensors": lambda path, lm: cached(lm).save(path),
    "tokenizer.json": lambda path, lm: our_model()[1].save(path),
    "config.json": lambda path, lm: save_model(path.parent, *our_model()),
    "model.safetensors": lambda path, lm: save_model(path.parent, *our_model()),
    "training.safetensors": lambda path, lm: write_state(path),
    "p.svg": lambda path, lm: save(PLOT, path),
    "p.png": lambda path, lm: save(PLOT, path),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_takes_the_place_of_a_link(language_model: Any, tmp_path: Path, victim: Path, name: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    path = out / name
    for planted in (path, sibling(path, "partial"), path.with_name(f".{name}.{os.getpid()}.tmp"),
                    path.with_name(f".{name}.partial"), path.with_suffix(".tmp")):  # fmt: skip
        planted.symlink_to(victim / "file")
    umask = os.umask(0o027)
    try:
        OUTPUTS[name](path, language_model)
    finally:
        os.umask(umask)
    assert not path.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640  # as of any new file
    assert path.stat().st_size > 0
    assert not os.path.lexists(sibling(path, "partial"))


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_full_disk_names_the_output_and_leaves_the_old_one(language_model: Any, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("old")
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limit[1]))  # bytes; nothing here is as small
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            OUTPUTS[name](path, language_model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.errno == errno.EFBIG
    if name.split(".")[0] not in ("model",):  # config.json, which is written first, is named
        assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir() if file.name.endswith("partial")] == []


def test_the_export_command_names_the_output_on_a_full_disk(store: Path, texts: Path, tmp_path: Path) -> None:
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    too_large = "File too large; expected that files may be as large: choose another disk"
    for name, text in [("t.parquet", [texts / "test.txt"]), ("t.safetensors", [texts / "test.txt"]), ("s.arrow", [])]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limit[1]))
        try:
            said = run("export", store, *text, "--out", tmp_path / name, code=1).stderr
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert f"{tmp_path / name}: {too_large}" in said
        assert not (tmp_path / name).exists()
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_for_temporary_files_names_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rows = GrowingArray(limit=100)
    rows.append(np.zeros((0, 3)))
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))
    try:
        with pytest.raises(OSError, match="set TMPDIR to a folder on a larger disk") as caught:
            rows.append(np.ones((1000, 3)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(tmp_path))


def test_a_model_that_may_not_be_read_is_not_called_missing() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        save_model(folder, *our_model())
        weights = Path(folder) / "model.safetensors"
        weights.chmod(0)
        user = os.geteuid()
        if user == 0:  # who may read everything
            os.seteuid(65534)
        try:
            with pytest.raises(PermissionError) as caught:
                read_model(folder)
        finally:
            os.seteuid(user)
    assert caught.value.filename == str(weights)


def test_the_page_of_inspect_takes_the_place_of_a_link(store: Path, texts: Path, tmp_path: Path, victim: Path) -> None:
    page = tmp_path / "page.html"
    page.symlink_to(victim / "file")
    run("inspect", store, texts / "test.txt", "--tokens", 3, "--html", page, "--overwrite")
    assert not page.is_symlink()
    assert "<html" in page.read_text()


def test_plots_and_exports_of_the_commands_take_the_place_of_links(
    store: Path, texts: Path, tmp_path: Path, victim: Path
) -> None:
    plots = tmp_path / "plots"
    plots.mkdir()
    (plots / "perplexity-k.svg").symlink_to(victim / "file")
    run("tune", store, texts / "valid.txt", "--plots", plots, "--overwrite")
    assert not (plots / "perplexity-k.svg").is_symlink()
    out = tmp_path / "t.parquet"
    out.symlink_to(victim / "nowhere")
    assert "exists already" in run("export", store, texts / "test.txt", "--out", out, code=2).stderr
    run("export", store, texts / "test.txt", "--out", out, "--overwrite")
    assert not out.is_symlink()


# -- folders of ours --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model and a store of codes that it made, with what re-training it gives."""
    loaded = tiny(d=DIM)
    keys = KeySpec(window=24, key_dtype="float32").resolved(loaded.context)
    path = tmp_path_factory.mktemp("coded") / "store"
    build(path, loaded, keys=keys, attributes=describe(loaded, keys))
    whole = Path(shutil.copytree(path, path.with_name("whole")))
    retrain(whole, loaded, nlist=4, part_tokens=300)
    return loaded, path, hashes(whole)


def retrained(path: Path, loaded: Any, **options: Any) -> dict[str, str]:
    retrain(path, loaded, nlist=4, part_tokens=300, **options)
    return hashes(path)


def test_retraining_as_a_link_is_replaced(coded: Any, tmp_path: Path, victim: Path) -> None:
    loaded, path, expected = coded
    store = Path(shutil.copytree(path, tmp_path / "store"))
    (store / RETRAINING).symlink_to(victim)
    assert retrained(store, loaded) == expected
    assert not os.path.lexists(store / RETRAINING)


@pytest.mark.parametrize("name", ["part-00000003.tmp", "part-00000003.json", "truth-4.tmp", "truth-4.npz", "plan.tmp",
                                  "lists-00000003-0.seg", "lists-00000004-0.seg", "found-00000003.npz"])  # fmt: skip
def test_links_in_an_interrupted_retraining_are_not_written_through(
    coded: Any, tmp_path: Path, victim: Path, name: str
) -> None:
    loaded, path, expected = coded
    store = Path(shutil.copytree(path, tmp_path / "store"))

    def kill(stage: str, done: int, total: int) -> None:
        if stage == "encode" and done > 700:
            raise KilledError

    with pytest.raises(KilledError):
        retrained(store, loaded, progress=kill)
    assert (store / RETRAINING / "part-00000002.json").exists()
    (store / RETRAINING / name).unlink(missing_ok=True)
    (store / RETRAINING / name).symlink_to(victim / "file")
    assert retrained(store, loaded) == expected


@pytest.fixture(scope="module")
def kept(coded: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An interrupted build that keeps keys, and the bytes of the finished one."""
    path = tmp_path_factory.mktemp("kept")

    def kill(stage: str, done: int, total: int) -> None:
        if stage == "encode" and done > 700:
            raise KilledError

    build(path / "whole", coded[0], keep_keys=True)
    with pytest.raises(KilledError):
        build(path / "store", coded[0], keep_keys=True, progress=kill)
    return path / "store", hashes(path / "whole")


@pytest.mark.parametrize("name", ["truth-3.tmp", "truth-4.tmp", "keys-00000003.npy", "keys-00000004.npy",
                                  "lists-00000003-0.seg", "found-00000003.npz"])  # fmt: skip
def test_links_in_an_interrupted_build_are_not_written_through(
    coded: Any, kept: Any, tmp_path: Path, victim: Path, name: str
) -> None:
    path, expected = kept
    store = Path(shutil.copytree(path, tmp_path / "store"))
    (store / PARTS / name).unlink(missing_ok=True)
    (store / PARTS / name).symlink_to(victim / "file")
    assert build(store, coded[0], keep_keys=True).resumed_parts >= 3
    assert hashes(store) == expected


def test_parts_as_a_link_are_refused_or_replaced(coded: Any, tmp_path: Path, victim: Path) -> None:
    loaded = coded[0]

    def kill(stage: str, done: int, total: int) -> None:
        if stage == "encode":
            raise KilledError

    with pytest.raises(KilledError):
        build(tmp_path / "store", loaded, progress=kill)
    shutil.rmtree(tmp_path / "store" / PARTS)
    (tmp_path / "store" / PARTS).symlink_to(victim)
    with pytest.raises(ValueError, match=r"parts of an interrupted build, found none"):
        build(tmp_path / "store", loaded)

    def kill_early(stage: str, done: int, total: int) -> None:
        if stage == "sample":
            raise KilledError

    with pytest.raises(KilledError):
        build(tmp_path / "other", loaded, progress=kill_early)
    remove_tree(tmp_path / "other" / PARTS)
    (tmp_path / "other" / PARTS).symlink_to(victim)
    assert build(tmp_path / "other", loaded).tokens > 0
    assert not os.path.lexists(tmp_path / "other" / PARTS)


# -- commands that make folders ---------------------------------------------------------------------------------------


def making(command: str, texts: Path, model: Path) -> tuple[Any, ...]:
    sizes = ("--vocab-size", 300, "--d-model", 16, "--layers", 1, "--heads", 2, "--context", 32, "--batch-tokens", 256)
    if command == "train":
        return ("train", texts / "books", "--steps", 1, *sizes, "--threads", 1, "--overwrite", "--out")
    return (command, texts / "books", "--model", model, "--threads", 1, "--overwrite", "--out")


@pytest.mark.parametrize("command", ["build", "dump", "train"])
def test_links_beside_an_output_folder_are_not_followed(
    command: str, texts: Path, model: Path, tmp_path: Path, victim: Path
) -> None:
    out = tmp_path / "out"
    make = making(command, texts, model)
    run(*make, out)
    others = [sibling(out, "partial"), sibling(out, "old"), tmp_path / f".out.{own_files._host()}.{dead()}.partial"]
    for link in others:
        link.symlink_to(victim)
    (out / "replaced.tmp").symlink_to(victim / "new")
    run(*make, out)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".out", "out"))) == [
        "out", *([sibling(out, "old").name] if os.path.lexists(sibling(out, "old")) else [])
    ]  # fmt: skip
    assert not os.path.lexists(out / "replaced.tmp")
    assert not out.is_symlink()


@pytest.mark.parametrize(("command", "name"), [("build", ".out.building"), ("train", "out.new")])
def test_a_link_where_a_work_is_gone_on_with_is_refused(
    command: str, name: str, texts: Path, model: Path, tmp_path: Path, victim: Path
) -> None:
    make = making(command, texts, model)
    run(*make, tmp_path / "out")
    before = hashes_of_all(tmp_path / "out")
    (tmp_path / name).symlink_to(victim)
    said = run(*make, tmp_path / "out", code=2).stderr
    assert f"{tmp_path / name} is a link: expected" in said
    assert hashes_of_all(tmp_path / "out") == before


def test_a_lock_that_is_a_link_is_refused(texts: Path, model: Path, tmp_path: Path, victim: Path) -> None:
    make = making("dump", texts, model)
    run(*make, tmp_path / "out")
    (tmp_path / "out" / "lock").unlink()
    (tmp_path / "out" / "lock").symlink_to(victim / "new")
    assert "expected the lock of a store, found a link" in run(*make, tmp_path / "out", code=1).stderr


def test_a_demo_is_made_in_place_of_links(tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "demo"
    out.mkdir()
    for part in ("model", "store-docstrings", "store-reference"):
        (out / part).symlink_to(victim)
    (out / "demo.json").symlink_to(victim / "file")

    def stop() -> Any:
        raise KilledError

    monkeypatch.setattr(demo, "docstrings", stop)
    with pytest.raises(KilledError):
        demo.run(out, demo.DemoSettings(), lambda *given: None)  # type: ignore[arg-type]
    assert [path.name for path in out.iterdir()] == ["demo.json"]
    assert json.loads((out / "demo.json").read_text())["seed"] == 0


def test_overwrite_takes_no_file_for_ours_by_its_ending(texts: Path, model: Path, tmp_path: Path) -> None:
    make = making("dump", texts, model)
    run(*make, tmp_path / "out")
    (tmp_path / "out" / "thesis.tmp").write_text("mine")
    assert "holds thesis.tmp, which is not of a store or model" in run(*make, tmp_path / "out", code=2).stderr
    (tmp_path / "out" / "thesis.tmp").unlink()
    (tmp_path / "out" / "values.tmp").write_text("of a writer that died")
    (tmp_path / "out" / "manifest-00000009.json.tmp").write_text("of a writer that died")
    assert run_json(*make, tmp_path / "out")["tokens"] > 0


def test_a_store_of_another_writer_is_not_imported_over(tmp_path: Path) -> None:
    from knnlm.exchange.import_vectors import import_memmaps

    np.save(tmp_path / "k.npy", np.ones((5, 4), np.float32))
    np.save(tmp_path / "v.npy", np.arange(5))
    given = (tmp_path / "store", tmp_path / "k.npy", tmp_path / "v.npy")
    import_memmaps(*given)
    with Datastore.open(tmp_path / "store") as writer:
        writer.add(np.ones((1, 4), np.float32), [1])
        with pytest.raises(StoreError, match="another writer holds this store"):
            import_memmaps(*given, overwrite=True)
    sibling(tmp_path / "store", "partial").symlink_to(tmp_path / "victim")
    import_memmaps(*given, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["k.npy", "store", "v.npy", "victim"]
