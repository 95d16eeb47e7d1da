"""`knnlm export` says how much it is about to write, and it is about that much."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from cli_corpus import run, run_json
from click.testing import CliRunner

from knnlm import Datastore
from knnlm.cli import main

UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}


def said(text: str, how: str) -> float:
    found = re.search(rf"will take {how} ([\d.]+) (\w+):", " ".join(text.split()))
    assert found, text
    return float(found[1]) * UNITS[found[2]]


@pytest.mark.parametrize("more", [(), ("--only-p",), ("--k", 8)])
def test_of_a_text(store: Path, texts: Path, tmp_path: Path, more: tuple[object, ...]) -> None:
    pytest.importorskip("safetensors")
    out = tmp_path / "targets.safetensors"
    told = run("export", store, texts / "test.txt", "--out", out, *more).stderr
    size = out.stat().st_size
    assert 0.3 * size < size - 2000 < said(told, "up to")
    assert f"{run_json('eval', store, texts / 'test.txt')['tokens']:,} tokens, " in told


@pytest.mark.parametrize("more", [(), ("--no-keys",)])
def test_of_the_store(tmp_path: Path, more: tuple[object, ...]) -> None:
    pytest.importorskip("pyarrow")
    with Datastore.create(tmp_path / "store", dim=32, keep_keys="float32") as store:
        for name in ("short", "a document with a long name"):
            store.add(np.ones((20_000, 32), np.float32), np.arange(20_000), document=name)
    out = tmp_path / "store.arrow"
    told = run("export", tmp_path / "store", "--out", out, *more).stderr
    assert said(told, "about") == pytest.approx(out.stat().st_size, rel=0.02)


def test_standard_input_is_counted_and_read(store: Path, tmp_path: Path, texts: Path) -> None:
    text = (texts / "test.txt").read_bytes()
    out = tmp_path / "targets.safetensors"
    done = CliRunner().invoke(main, ["export", str(store), "-", "--out", str(out)], input=text)
    assert done.exit_code == 0, done.output
    assert "will take up to" in done.output
