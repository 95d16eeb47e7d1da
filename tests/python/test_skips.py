"""Skips that would hide breakage are failures in CI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from skips import missing_package, of_the_test_extra

HERE = Path(__file__).parent

INNER = """
import pytest

def test_of_a_package():
    pytest.importorskip("faiss.no_such_module")

def test_of_our_own():
    pytest.importorskip("knnlm.no_such_module")

def test_of_something_else():
    pytest.importorskip("no_such_package")

def test_of_a_system():
    pytest.skip("this system has no fork")
"""


def test_what_the_test_extra_installs():
    known = of_the_test_extra()
    assert {
        "transformers",
        "datasets",
        "faiss",
        "nltk",
        "hypothesis",
        "pytest",
        "torch",
        "click",
        "jinja2",
        "numpy",
        "knnlm",
    } <= known
    assert not {"hnswlib", "usearch", "scann", "maturin", "ruff"} & known


@pytest.mark.parametrize(
    ("reason", "package"),
    [
        ("could not import 'faiss': No module named 'faiss'", "faiss"),
        ("could not import 'knnlm.model.transformer': cannot import name 'x'", "knnlm"),
        ("could not import GptOssConfig from 'transformers' 4.45", "transformers"),
        ("could not import 'scann': No module named 'scann'", None),
        ("this system has no 'faiss'", None),
    ],
)
def test_reasons(reason, package):
    assert missing_package(reason) == package


def run_inner(folder, required):
    (folder / "conftest.py").write_text((HERE / "conftest.py").read_text())
    ours = ("KNNLM_REQUIRE_TEST_PACKAGES", "PYTEST_ADDOPTS")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(HERE), str(HERE / "support"), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    if required:
        environment["KNNLM_REQUIRE_TEST_PACKAGES"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", folder]
    return subprocess.run([*command, folder], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("required", [True, False])
def test_a_hidden_skip_fails_where_that_is_asked(tmp_path, required):
    (tmp_path / "test_inner.py").write_text(INNER)
    done = run_inner(tmp_path, required)
    assert ("2 failed, 2 skipped" if required else "4 skipped") in done.stdout, done.stdout
    assert done.returncode == required
    assert ("faiss is a package of the test extra" in done.stdout) == required


def test_a_hidden_skip_of_a_whole_file_fails_too(tmp_path):
    (tmp_path / "test_whole_file.py").write_text("import pytest\npytest.importorskip('nltk.no_such_module')\n")
    done = run_inner(tmp_path, required=True)
    assert "nltk is a package of the test extra" in done.stdout, done.stdout
    assert done.returncode == 2
