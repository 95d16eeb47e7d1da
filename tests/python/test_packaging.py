"""The package as it is installed: no torch before it is needed, one version, one stub, one test command."""

from __future__ import annotations

import doctest
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path

import pytest

import knnlm
import knnlm.datastore
from knnlm import _core

ROOT = Path(__file__).parents[2]


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_datastore_does_not_import_torch():
    out = run(
        "import sys, tempfile, numpy as np, knnlm\n"
        "early = 'torch' in sys.modules, 'numpy' in sys.modules\n"
        "with knnlm.Datastore.create(tempfile.mkdtemp() + '/s', dim=8) as store:\n"
        "    store.add(np.eye(8), np.arange(8)); store.build(); store.search(np.eye(8), 2)\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'matplotlib', 'rich'} & set(sys.modules)\n"
        "print(early[0], sorted(heavy))"
    )
    assert out == "False []\n"


def test_import_of_the_package_alone_imports_nothing_heavy():
    assert run("import sys, knnlm; print('numpy' in sys.modules, 'knnlm._core' in sys.modules)") == "False False\n"


def test_every_public_name_can_be_had():
    assert set(dir(knnlm)) == set(knnlm.__all__)
    for name in knnlm.__all__:
        assert getattr(knnlm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Datastor'"):
        knnlm.Datastor  # noqa: B018


def test_one_version():
    assert knnlm.__version__ == version("knnlm") == _core.__version__
    assert (
        f"## {knnlm.__version__}" in (ROOT / "CHANGELOG.md").read_text()
        or "## Unreleased" in (ROOT / "CHANGELOG.md").read_text()
    )


def test_example_of_the_datastore():
    assert doctest.testmod(knnlm.datastore) == (0, 3)


def test_instruction_sets_start_with_the_portable_one():
    assert _core.instruction_sets()[0] == "scalar"
    assert set(_core.instruction_sets()) <= {"scalar", "neon", "avx2", "avx512"}


def test_release_build():
    assert not _core.DEBUG, "the extension was compiled without optimisation; run `make build`"


def test_exceptions_have_their_public_names():
    assert (knnlm.StoreError.__module__, knnlm.FormatError.__module__) == ("knnlm", "knnlm")
    assert issubclass(knnlm.FormatError, ValueError)
    assert issubclass(knnlm.StoreError, Exception)


def test_typed_and_stubbed():
    folder = Path(knnlm.__file__).parent
    assert (folder / "py.typed").exists()
    assert (folder / "_core.pyi").exists()


def test_constraints_pin_what_the_package_asks_for():
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    asked = {r.split(";")[0].split(">")[0].split("<")[0].split("[")[0].strip() for r in requires("knnlm") or []}
    assert asked - {"knnlm"} <= pinned


def test_ci_runs_the_readme_s_test_command():
    last = (ROOT / ".ci" / "run").read_text().strip().splitlines()[-1]
    assert last.endswith("&& pytest")
    assert last in (ROOT / "README.md").read_text().splitlines()
