"""Bad input: each a clear error that says what was expected and found, and nothing is lost."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from knnlm import Datastore, FormatError, StoreError


@pytest.fixture
def path(tmp_path):
    """A sound store: 500 entries in 5 documents, built, keys kept."""
    keys = np.random.default_rng(0).standard_normal((500, 16)).astype(np.float32)
    with Datastore.create(tmp_path / "store", dim=16, keep_keys="float16", max_value=999) as store:
        for i in range(5):
            store.add(keys[100 * i : 100 * i + 100], np.arange(100), document=f"d{i}")
        store.build(seed=0)
    return tmp_path / "store"


@pytest.fixture
def store(path):
    with Datastore.open(path) as opened:
        yield opened


ONE = np.ones((1, 16), np.float32)


@pytest.mark.parametrize(
    ("keys", "values", "message"),
    [
        (np.ones((2, 15)), [1, 2], r"keys must have shape \(\.\.\., 16\).*found \(2, 15\)"),
        (np.ones((2, 2, 16)), [1, 2], r"keys must have shape \(n, 16\), found \(2, 2, 16\)"),
        (np.ones((2, 16)), [1, 2, 3], r"3 values.*2 rows"),
        (ONE * np.nan, [1], r"(?i)nan"),
        (ONE * 0 + 3e19, [1], r"at most .* in size"),
        (np.where(np.arange(32).reshape(2, 16) == 21, np.inf, 1), [1, 2], r"(?i)inf"),
        (ONE.astype(np.float64) * 1e300, [1], r"(?i)inf"),
        (ONE.astype(complex), [1], "keys must be floats, found dtype complex128"),
        (ONE, [1000], r"1000.*max_value|max_value.*1000"),
        (ONE, [-1], "values must be from 0 to 4294967294, found -1 at position 0"),
        (ONE, [2**32], "values must be from 0 to 4294967294, found 4294967296 at position 0"),
        (ONE, [2**32 - 1], "found 4294967295 at position 0; .* largest number means missing"),
        (ONE, [2**70], "found 1180591620717411303424 at position 0"),
        (ONE, [0.5], "values must be integers, found dtype float64"),
    ],
)
def test_add_refuses_and_adds_nothing(path, keys, values, message):
    with Datastore.open(path) as store:
        before = store.generation
        with pytest.raises(ValueError, match=message):
            store.add(keys, values, document="bad")
        assert store.add(ONE, [7], document="good") == range(500, 501)
        assert len(store) == 501
        assert store.generation == before + 1
    with Datastore.open(path) as store:
        assert [d.name for d in store.documents()] == ["d0", "d1", "d2", "d3", "d4", "good"]
        assert store.values(500, 501).tolist() == [7]


@pytest.mark.parametrize("metadata", [{1: {2}}, {"a": object()}, {"a": 1, 2: 3}, {"a": np.float32(1)}])
def test_metadata_must_be_json(path, metadata):
    with Datastore.open(path) as store:
        with pytest.raises(ValueError, match=r"^metadata.*: expected JSON.*nothing was changed"):
            store.add(ONE, [1], document="bad", metadata=metadata)
        with pytest.raises(ValueError, match=r"^attributes.*: expected JSON"):
            store.set_attributes(metadata)
        assert len(store) == 500


def test_all_ones_is_no_value_of_64_bits(tmp_path):
    with Datastore.create(tmp_path / "s", dim=16, value_dtype="uint64") as store:
        with pytest.raises(ValueError, match="largest number means missing"):
            store.add(ONE, np.array([2**64 - 1], np.uint64))
        store.add(ONE, [2**64 - 2])
        assert store.values(0, 1).tolist() == [2**64 - 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "dim must be from 1 to 65536, found 0"),
        ({"dim": 8.0}, "dim must be an integer, found 8.0"),
        ({"dim": 8, "metric": "cosine"}, r"metric.*cosine"),
        ({"dim": 8, "keep_keys": "float64"}, r"keep_keys.*float64"),
        ({"dim": 8, "value_dtype": "int32"}, r"value_dtype.*int32"),
        ({"dim": 8, "max_value": 2**32}, r"max_value.*4294967296"),
    ],
)
def test_create_refuses(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        Datastore.create(tmp_path / "s", **arguments)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k must be from 1"),
        ({"k": 1.5}, "k must be an integer"),
        ({"k": 1, "nprobe": 0}, "nprobe must be from 1"),
        ({"k": 1, "threads": 0}, "threads must be from 1"),
        ({"k": 1, "rerank": "best"}, r"rerank.*best"),
        ({"k": 1, "exclude": [0, 1]}, r"exclude must have shape \(1, 2\).*found \(2,\)"),
        ({"k": 1, "exclude": [[-1, 1]]}, "exclude must be from 0"),
        ({"k": 1, "exclude": [[5, 2]]}, r"exclude|5"),
    ],
)
def test_search_refuses(store, arguments, message):
    with pytest.raises(ValueError, match=message):
        store.search(ONE, **arguments)
    with pytest.raises(ValueError, match=r"(?i)nan"):
        store.search(ONE * np.nan, 1)
    with pytest.raises(ValueError, match=r"at most .* in size"):
        store.search(ONE * 0 + 3e19, 1)
    with pytest.raises(ValueError, match=r"queries must have shape \(\.\.\., 16\)"):
        store.search(np.ones((1, 17)), 1)


def test_reading_refuses_ids_that_are_not_there(store):
    for call in (store.get, store.document_of, store.reconstruct):
        with pytest.raises(ValueError, match="found 500 at position 1; the store has 500 entries"):
            call([0, 500])
    with pytest.raises(ValueError, match="ids must be from 0 to 499, found -1"):
        store.reconstruct([-1])
    with pytest.raises(ValueError, match="stop must be from 10 to 500, found 501"):
        store.values(10, 501)
    with pytest.raises(ValueError, match="stop must be from 10 to 500, found 9"):
        store.keys(10, 9)


def test_exact_and_rerank_need_kept_keys(tmp_path):
    with Datastore.create(tmp_path / "s", dim=16) as store:
        store.add(np.random.default_rng(0).standard_normal((300, 16)), np.arange(300))
        store.build(seed=0)
        with pytest.raises(StoreError, match="keep_keys"):
            store.search(ONE, 1, exact=True)
        with pytest.raises(StoreError, match="keep_keys"):
            store.search(ONE, 1, rerank="keys")
        with pytest.raises(StoreError, match="keep_keys"):
            store.keys(0, 1)
        with pytest.raises(StoreError, match="keep_keys"):
            store.build(retrain=True)
        assert store.search(ONE, 1).ids.shape == (1, 1)


def test_use_after_close(path):
    store = Datastore.open(path)
    store.close()
    store.close()
    for use in (
        lambda: store.search(ONE, 1),
        lambda: store.add(ONE, [1]),
        lambda: store.get([0]),
        lambda: store.values(0, 1),
        lambda: len(store),
        lambda: store.build(),
        lambda: store.commit(),
        lambda: store.info(),
        lambda: store.verify(),
        lambda: store.documents(),
        lambda: store.set_attributes({}),
    ):
        with pytest.raises(StoreError, match=r"closed.*open"):
            use()


def test_existing_store_is_not_replaced_unless_told(path):
    with pytest.raises(StoreError, match="overwrite=True"):
        Datastore.create(path, dim=8)
    with Datastore.open(path) as store:
        assert len(store) == 500
    with Datastore.create(path, dim=8, overwrite=True) as store:
        assert (len(store), store.dim) == (0, 8)


def test_overwrite_does_not_touch_a_folder_of_other_things(tmp_path):
    (tmp_path / "precious.txt").write_text("do not delete")
    with pytest.raises(StoreError, match=r"precious\.txt"):
        Datastore.create(tmp_path, dim=8, overwrite=True)
    assert (tmp_path / "precious.txt").read_text() == "do not delete"


def test_no_store_there(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        Datastore.open(tmp_path / "nothing")
    assert caught.value.errno == errno.ENOENT
    assert f"create a store there: '{tmp_path / 'nothing'}'" in str(caught.value)  # and no PosixPath('…')
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"found a file: choose another path.*file'"):
        Datastore.create(tmp_path / "file", dim=8)
    with pytest.raises(FormatError, match="manifest"):
        Datastore.open(tmp_path)


def test_second_writer_is_refused(path):
    with Datastore.open(path) as first, Datastore.open(path) as second:
        first.add(ONE, [1])
        with pytest.raises(StoreError, match=r"(?i)writ"):
            second.add(ONE, [1])
        assert second.search(ONE, 1).ids.shape == (1, 1)


def test_entries_of_a_failed_block_are_dropped(path):
    with pytest.raises(ZeroDivisionError), Datastore.open(path) as store:  # noqa: PT012
        store.add(ONE, [1], document="half")
        raise ZeroDivisionError
    with Datastore.open(path) as store:
        assert len(store) == 500
        assert store.add(ONE, [1]) == range(500, 501)


def test_argument_errors_do_not_build(tmp_path):
    with Datastore.create(tmp_path / "s", dim=16) as store:
        store.add(np.random.default_rng(0).standard_normal((300, 16)), np.arange(300))
        for arguments in ({"code": "tiny"}, {"code": (16, 5)}, {"code": (0, 4)}, {"code": (17, 4)}, {"nlist": 0}):
            with pytest.raises(ValueError, match=r"code|m |bits|nlist|tiny"):
                store.build(**arguments)
            assert not store.is_built
        store.build()
        assert store.is_built


def test_exception_in_progress_stops_the_build(tmp_path):
    def fail(stage, done, total):
        raise LookupError(stage)

    with Datastore.create(tmp_path / "s", dim=16) as store:
        store.add(np.random.default_rng(0).standard_normal((3000, 16)), np.arange(3000))
        with pytest.raises(LookupError):
            store.build(progress=fail)
        assert len(store) == 3000
        assert store.verify() == []


# -- damaged files ----------------------------------------------------------------------------------------------


def segments(path):
    return sorted(p for p in path.iterdir() if p.suffix == ".seg")


def test_every_truncated_segment_is_noticed(path):
    assert {p.name.split("-")[0] for p in segments(path)} == {"data", "codebook", "lists"}
    for segment in segments(path):
        whole = segment.read_bytes()
        for size in (0, 10, len(whole) // 2, len(whole) - 1):
            segment.write_bytes(whole[:size])
            with pytest.raises(FormatError, match=segment.name):
                Datastore.open(path, verify=True)
        segment.write_bytes(whole)
    with Datastore.open(path, verify=True) as store:
        assert store.search(ONE, 3).ids.shape == (1, 3)


def test_missing_segment_is_named(path):
    for segment in segments(path):
        moved = segment.rename(segment.with_suffix(".away"))
        with pytest.raises((FormatError, FileNotFoundError), match=segment.name):
            Datastore.open(path)
        moved.rename(segment)


def test_flipped_byte_is_found_by_verify(path):
    rng = np.random.default_rng(0)
    for file in [*segments(path), max(path.glob("manifest-*.json"))]:
        whole = file.read_bytes()
        for position in rng.integers(0, len(whole), 12):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << int(rng.integers(8))
            file.write_bytes(damaged)
            try:
                with Datastore.open(path) as store:
                    problems = store.verify()
            except (FormatError, OSError) as error:
                problems = [str(error)]
            assert problems, f"{file.name} byte {position}"
            assert file.name in " ".join(problems), f"{file.name} byte {position}: {problems}"
        file.write_bytes(whole)
    with Datastore.open(path) as store:
        assert store.verify() == []


def test_flipped_bytes_never_crash_a_search(path):
    """Values from a damaged file are checked: an error or an answer, and the process lives."""
    rng = np.random.default_rng(1)
    for file in segments(path):
        whole = file.read_bytes()
        for _ in range(15):
            damaged = bytearray(whole)
            for position in rng.integers(0, len(whole), 20):
                damaged[position] = int(rng.integers(256))
            file.write_bytes(damaged)
            try:
                with Datastore.open(path) as store:
                    store.search(np.ones((2, 16)), 5, nprobe=1000)
                    store.search(np.ones((2, 16)), 5, exact=True)
                    store.reconstruct([0, 499])
                    store.get([0, 499]).names  # noqa: B018
            except (FormatError, StoreError, OSError, ValueError):
                pass
        file.write_bytes(whole)


def test_store_of_a_newer_format_is_refused(path):
    manifest = max(path.glob("manifest-*.json"))
    text = manifest.read_text()
    newer = re.sub(r'"format":\[\d+,', '"format":[99,', text)
    assert newer != text
    manifest.write_text(newer)
    with pytest.raises(FormatError, match=r"99.*(newer|update|upgrade)|(newer|update|upgrade).*99"):
        Datastore.open(path)


# -- the operating system says no -------------------------------------------------------------------------------

CHILD = """
import os, sys
import numpy as np, knnlm
knnlm.Datastore.open({path!r}).close()  # everything is imported before root is given up
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    {code}
except PermissionError as error:
    print("refused", error.errno, error.filename, error.strerror)
"""


@pytest.mark.skipif(not hasattr(os, "setuid") or os.getuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(
    "code",
    [
        "knnlm.Datastore.open({path!r}).add(np.ones((1, 16)), [1])",
        "knnlm.Datastore.open({path!r}).set_attributes({{}})",
        "knnlm.Datastore.open({path!r}).build(retrain=True)",
        "knnlm.Datastore.create({parent!r} + '/new', dim=8)",
        "knnlm.Datastore.create({path!r}, dim=8, overwrite=True)",
    ],
)
def test_no_write_permission(path, code):
    for folder in (path.parent.parent, path.parent):  # reading must be allowed, writing not
        folder.chmod(0o755)
    names = {"path": str(path), "parent": str(path.parent)}
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    program = CHILD.format(code=code.format(**names), path=str(path))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.startswith(f"refused {errno.EACCES} {path.parent}"), done.stdout + done.stderr
    assert "expected permission: change the rights" in done.stdout
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    made = mount and subprocess.run([mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True)
    if not made or made.returncode:
        pytest.skip("no permission to mount a small tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_full_disk_loses_nothing(small_disk: Path):
    keys = np.random.default_rng(0).standard_normal((1000, 64)).astype(np.float32)
    store = Datastore.create(small_disk / "s", dim=64, keep_keys="float32")
    store.add(keys, np.arange(1000), document="first")
    store.commit()
    published = store.generation
    with pytest.raises(OSError, match=r"(?i)no space") as caught:  # noqa: PT012
        for _ in range(20):
            store.add(keys, np.arange(1000))
        store.commit()
    assert caught.value.errno == errno.ENOSPC
    assert "free space and do it again: the last generation of the store is whole" in str(caught.value)
    with pytest.raises(OSError, match=r"(?i)no space"), store:
        raise caught.value
    with Datastore.open(small_disk / "s", verify=True) as again:
        assert again.generation == published
        assert len(again) == 1000
        np.testing.assert_array_equal(again.search(keys[:5], 1).ids[:, 0], np.arange(5))
        again.add(keys[:10], np.arange(10))
        assert len(again) == 1010
