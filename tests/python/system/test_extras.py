"""Without the packages of an extra: NumPy alone serves the datastore, and what needs more says what to install."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import knnlm
from knnlm.store.datastore import Datastore
from knnlm.system.extras import INSTALL, MissingPackageError, explained, installed, module, require

LM = ("torch", "tokenizers", "safetensors", "backports.zstd")
CLI = ("click", "rich")
REPORT = ("jinja2", "matplotlib")
HF = ("transformers", "datasets", "pyarrow", "fsspec", "faiss")

REFUSE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if any(f"{name}.".startswith(f"{package}.") for package in REFUSED):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

REFUSED = sys.argv[1].split(",")
sys.argv[1:] = sys.argv[2:]
sys.meta_path.insert(0, Refuse())
"""

ALONE = """
early = set(sys.modules)
import numpy as np
import knnlm

keys = np.random.default_rng(0).standard_normal((500, 16), dtype=np.float32)
with knnlm.Datastore.create("store", dim=16, keep_keys="float16") as store:
    store.add(keys, np.arange(500), document="first")
    store.build(seed=0)
    found = store.search(keys[:5], k=3)
    assert found.values[:, 0].tolist() == [0, 1, 2, 3, 4], found
    store.delete(["first"])
    store.compact()
with knnlm.Datastore.open("store") as store:
    assert len(store) == 0 and store.verify() == []
files = {name.split(".")[0]: str(getattr(module, "__file__", "")) for name, module in list(sys.modules.items())}
print([name for name, file in files.items() if "site-packages" in file and name not in {"numpy", "knnlm", *early}])
"""


def run(without: tuple[str, ...], code: str, *arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(knnlm.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-c", REFUSE + code, ",".join(without), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_datastore_needs_numpy_alone(tmp_path):
    done = run((*LM, *CLI, *REPORT, *HF), ALONE, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("without", "code", "said"),
    [
        (("torch",), "import knnlm; knnlm.KNNLM", r"knnlm.KNNLM needs torch.*pip install 'knnlm\[lm\]'"),
        (("torch",), "import knnlm; knnlm.load_model", r"knnlm.load_model needs torch.*pip install 'knnlm\[lm\]'"),
        (("tokenizers",), "import knnlm.text.tokenizer", r"tokenizers.*pip install 'knnlm\[lm\]'"),
        (("jinja2",), "import knnlm.report.page", r"jinja2.*pip install 'knnlm\[report\]'"),
        (("matplotlib",), "import knnlm.report.plots", r"matplotlib.*pip install 'knnlm\[report\]'"),
    ],
)
def test_what_needs_more_says_what_to_install(tmp_path, without, code, said):
    caught = f"\ntry:\n    {code}\nexcept ImportError as error:\n    print(error)\n"
    done = run(without, caught, folder=tmp_path)
    assert done.returncode == 0, done.stderr

    assert re.search(said, done.stdout), done.stdout


EVERY_NAME = """
import inspect
import pydoc

import knnlm

names = dict(inspect.getmembers(knnlm))
from knnlm import *
assert Datastore is names["Datastore"] is knnlm.Datastore
page = pydoc.plain(pydoc.render_doc(knnlm))
assert "class Datastore" in page and knnlm.__version__ in page
assert sorted(knnlm.__all__) == sorted(dir(knnlm))
print(*sorted({"KNNLM", "KNNMT", "attach", "load_model"} & set(names)))
"""


@pytest.mark.parametrize("without", [LM, ("torch",), ("tokenizers",), ("safetensors",), (*LM, *CLI, *REPORT, *HF)])
def test_every_name_of_the_package_can_be_had_without_torch(tmp_path, without):
    done = run(without, EVERY_NAME, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_every_name_of_the_package_can_be_had(tmp_path):
    done = run(REPORT, EVERY_NAME, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["KNNLM", "KNNMT", "attach", "load_model"]


PROGRAM = "from knnlm.__main__ import main; main()"


def test_the_program_without_click_says_what_to_install(tmp_path):
    done = run(CLI, PROGRAM, "info", "store", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "knnlm: the command line needs click, which is not installed: pip install 'knnlm[lm]', or 'knnlm[cli]' for "
        "the commands that need no language model\n"
    )


@pytest.fixture
def small(tmp_path):
    import numpy as np

    with Datastore.create(tmp_path / "store", dim=4, keep_keys="float16") as store:
        store.add(np.eye(4, dtype=np.float32), np.arange(4), document="one")
        store.build()
    return tmp_path


@pytest.mark.parametrize("command", ["info", "verify", "compact"])
def test_commands_without_a_model_need_no_torch(small, command):
    done = run((*LM, *REPORT, *HF), PROGRAM, command, "store", folder=small)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("without", "arguments", "said"),
    [
        (LM, ["tune", "store", "text", "--no-plots", "--model", "m"], "this command needs torch"),
        (LM, ["demo"], "the demo needs torch"),
        (REPORT, ["demo"], "the demo needs jinja2"),
        (REPORT, ["inspect", "store", "text", "--html", "page.html"], "--html needs jinja2"),
        (REPORT, ["tune", "store", "text", "--plots", "plots"], "--plots needs matplotlib"),
    ],
)
def test_commands_say_what_to_install_before_they_work(small, without, arguments, said):
    (small / "text").write_text("words")
    done = run(without, PROGRAM, *arguments, folder=small)
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert f"{said}, which is not installed: pip install 'knnlm[" in line, done.stderr
    assert "Traceback" not in done.stderr


def test_errors_of_other_packages_stay_as_they_are():
    other = ModuleNotFoundError("No module named 'torchvision'", name="torchvision")
    broken = ImportError("libcudart.so: cannot open", name="torch")
    assert explained(other) is other
    assert explained(broken) is broken
    assert explained(ModuleNotFoundError(name="torch.nn")).name == "torch"


def test_a_module_by_name():
    assert module("json", "this").loads("1") == 1
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        module("no_such_module", "this")
    assert not installed("no_such_module")
    assert not installed("no_such_module.part")
    require("numpy", use="this")
    with pytest.raises(MissingPackageError) as caught:
        raise explained(ModuleNotFoundError(name="jinja2"), "a page")
    assert str(caught.value) == "a page needs jinja2, which is not installed: pip install 'knnlm[report]'"


def test_every_extra_that_is_named_is_there():
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    for wanted in INSTALL.values():
        if wanted.startswith("'knnlm["):
            assert f"\n{wanted[7:-2]} = [" in text, wanted
