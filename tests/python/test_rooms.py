"""The house: a room imports only rooms listed before it, and no two files import each other."""

from __future__ import annotations

import ast
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
    "lifecycle",
    "knn_lm",
    "report",
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
