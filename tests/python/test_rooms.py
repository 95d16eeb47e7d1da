"""The house: a room imports only rooms listed before it, and no two files import each other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import knnlm

ROOMS = (
    "system",
    "store",
    "exchange",
    "text",
    "probability",
    "model",
    "train",
    "build",
    "lm",
    "evaluate",
    "report",
    "hf",
    "mt",
    "upkeep",
    "option_names",
    "creation",
    "knn_lm",
    "demo",
    "cli",
    "__main__",
)
"""The lowest first; a file beside the folders is a room of its own."""

HOUSE = Path(knnlm.__file__).parent
FILES = {
    ".".join(("knnlm", *path.relative_to(HOUSE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in HOUSE.rglob("*.py")
}


def imports(name: str) -> set[str]:
    """The files of the package that a file imports, at its head or inside of a function."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: imports are absolute"
            module = node.module or ""
            found |= {full if (full := f"{module}.{alias.name}") in FILES else module for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {module for module in found & FILES.keys() if module not in ("knnlm", name)}


def room(name: str) -> str:
    return name.split(".")[1]


INSIDE = sorted(name for name in FILES if name not in ("knnlm", "knnlm.reference"))


def test_each_file_is_in_a_room():
    assert {room(name) for name in INSIDE} == set(ROOMS)
    assert all(len(imports(name)) < len(FILES) for name in INSIDE)
    assert len(imports("knnlm.knn_lm")) > 3  # the reader of imports reads


@pytest.mark.parametrize("name", INSIDE)
def test_a_room_imports_only_rooms_below_it(name):
    above = [other for other in imports(name) if ROOMS.index(room(other)) > ROOMS.index(room(name))]
    assert above == []


def test_only_tests_need_the_reference():
    assert not [name for name in INSIDE if "knnlm.reference" in imports(name)]
    assert {room(name) for name in imports("knnlm.reference")} <= {"store"}


def test_no_two_files_import_each_other():
    left = {name: imports(name) for name in FILES}
    while left:
        free = [name for name, needed in left.items() if not needed & left.keys()]
        assert free, f"a circle in {sorted(left)}"
        for name in free:
            del left[name]


DOCS = Path(__file__).parents[2] / "docs" / "architecture.md"


def table() -> dict[str, list[str]]:
    """Room → rooms that it imports, as docs/architecture.md has them."""
    text = DOCS.read_text(encoding="utf-8").split("## The house: Python")[1].split("\n## ")[0]
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| `")]
    return {name.strip(" `"): [x for x in imported.strip().split(", ") if x != "–"] for name, imported in rows}


def test_the_architecture_has_these_rooms_in_this_order():
    assert tuple(table()) == ROOMS


@pytest.mark.parametrize("name", ROOMS)
def test_the_architecture_says_what_a_room_imports(name):
    found = {room(other) for file in INSIDE if room(file) == name for other in imports(file)} - {name}
    assert table()[name] == sorted(found)


def test_files_of_a_room_are_named_in_the_architecture():
    lines = {line.split("|")[1].strip(" `"): line for line in DOCS.read_text(encoding="utf-8").splitlines()
             if line.startswith("| `")}  # fmt: skip
    files = [path for path in HOUSE.glob("*/*.py") if path.name != "__init__.py"]
    missing = [str(path) for path in files if f"`{path.stem}`" not in lines[path.parent.name]]
    assert missing == []


def test_files_that_the_architecture_names_are_there():
    named = set(re.findall(r"`((?:python/knnlm|rust|tests|docs|examples)/[\w./]+\.\w+)`", DOCS.read_text("utf-8")))
    assert len(named) > 10
    root = DOCS.parents[1]
    assert [name for name in named if not (root / name).exists()] == []
    text = DOCS.read_text("utf-8")
    inside = {name for name in re.findall(r"`([a-z_]+/[\w/]+\.py)`", text) if not name.startswith(("python", "tests"))}
    assert [name for name in inside if not (HOUSE / name).exists()] == []
    crate = {
        name
        for name in re.findall(r"`([a-z]+/[\w/]+\.rs)`", text)
        if not name.startswith(("rust", "tests", "examples"))
    }
    assert [name for name in crate if not (root / "rust" / name).exists()] == []


def test_files_that_the_code_names_are_there():
    root, known = DOCS.parents[1], {path.name for path in HOUSE.rglob("*.py")}
    crate = {path.name for path in (root / "rust").rglob("*.rs")}
    count, missing = 0, []
    for path in [*HOUSE.rglob("*.py"), *(root / "rust").rglob("*.rs")]:
        for name in re.findall(r"`{1,2}([\w/]+\.(?:py|rs))\b", path.read_text("utf-8")):
            count += 1
            there = any((base / name).exists() for base in (path.parent, HOUSE, HOUSE.parent, root, root / "rust"))
            if not there and ("/" in name or name not in known | crate):
                missing.append(f"{path.relative_to(root)}: {name}")
    assert count > 20
    assert missing == []
