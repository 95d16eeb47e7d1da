"""The package as it is installed: no torch before it is needed, one version, one stub, one test command."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from importlib.metadata import distribution, requires, version
from pathlib import Path

import pytest

import knnlm
import knnlm.store.datastore
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
    cargo = re.search(r'^version = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.M)
    project = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert cargo
    assert project
    assert cargo[1] == project[1] == knnlm.__version__
    heads = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert heads[0] == "Unreleased" or heads[0].startswith(knnlm.__version__)


def test_example_of_the_datastore():
    assert doctest.testmod(knnlm.store.datastore) == (0, 3)


def test_instruction_sets_start_with_the_portable_one():
    assert _core.instruction_sets()[0] == "scalar"
    assert set(_core.instruction_sets()) <= {"scalar", "neon", "avx2", "avx512", "avx512vnni"}


def test_release_build():
    assert not _core.DEBUG, "the extension was compiled without optimisation; run `make build`"


def test_exceptions_have_their_public_names():
    assert (knnlm.StoreError.__module__, knnlm.FormatError.__module__) == ("knnlm", "knnlm")
    assert issubclass(knnlm.FormatError, ValueError)
    assert issubclass(knnlm.StoreError, Exception)


def test_installed_from_one_wheel_for_every_cpython():
    wheel = distribution("knnlm").read_text("WHEEL")
    assert [line for line in wheel.splitlines() if line.startswith("Tag: cp310-abi3-")]
    assert Path(_core.__file__).name in ("_core.abi3.so", "_core.pyd")


def test_wheel_check_of_ci():
    ci = (ROOT / ".ci" / "run").read_text()
    check = ci[ci.index("if [[ $wheel") : ci.index("\nfi\n") + 4]
    names = {
        "dist/knnlm-0.1.0-cp310-abi3-manylinux_2_17_x86_64.manylinux2014_x86_64.whl": 0,
        "dist/knnlm-0.1.0-cp312-cp312-linux_x86_64.whl": 1,
        "dist/*.whl": 1,
        "dist/knnlm-0.1.0-cp310-abi3-linux_x86_64.whl dist/knnlm-0.2.0-cp310-abi3-linux_x86_64.whl": 1,
    }
    for name, code in names.items():
        done = subprocess.run(["bash", "-c", check], env={"wheel": name}, capture_output=True, check=False)
        assert done.returncode == code, name


def test_benchmarks_are_run_by_cargo_test():
    benches = (ROOT / "Cargo.toml").read_text().split("[[bench]]")[1:]
    assert len(benches) == len(list((ROOT / "benches").glob("*.rs")))
    assert all("test = true" in bench.split("[profile")[0] for bench in benches)


def test_typed_and_stubbed():
    folder = Path(knnlm.__file__).parent
    assert (folder / "py.typed").exists()
    assert (folder / "_core.pyi").exists()


def test_constraints_pin_what_the_package_asks_for():
    def name(line):
        return re.split(r"[\[<>=!~; ]", line.strip())[0].lower().replace("_", "-").replace(".", "-")

    pinned = {name(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert {name(line) for line in requires("knnlm") or []} - {"knnlm"} <= pinned


def test_ci_runs_the_readme_s_test_command():
    last = (ROOT / ".ci" / "run").read_text().strip().splitlines()[-1]
    assert last.endswith("&& pytest")
    assert last in (ROOT / "README.md").read_text().splitlines()
