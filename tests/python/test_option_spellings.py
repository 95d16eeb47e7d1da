"""Messages of the library are seen from Python and from commands: options of commands are named as such."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import knnlm

HOUSE = Path(knnlm.__file__).parent
OF_COMMANDS = {"cli", "demo", "report", "__main__.py"}  # what people see at a command line, and pages with CSS
ONLY_COMMANDS_ASK = {"store/new_index.py"}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+|\bknnlm (build|tune|add|dump|eval|compact) ")


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every string of a file but its docstrings, f-strings as a whole: line and text."""
    inside: set[int] = set()
    for node in ast.walk(tree):
        if id(node) in inside:
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):  # a docstring
            inside.add(id(node.value))
        elif isinstance(node, ast.JoinedStr):
            parts = [part for part in ast.walk(node) if part is not node]
            inside |= {id(part) for part in parts}
            yield node.lineno, "".join(str(one.value) for one in node.values if isinstance(one, ast.Constant))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def test_options_of_commands_are_named_as_such() -> None:
    wrong = [
        f"{path.relative_to(HOUSE)}:{line}: {text}"
        for path in sorted(HOUSE.rglob("*.py"))
        if not OF_COMMANDS & set(path.relative_to(HOUSE).parts)
        and path.relative_to(HOUSE).as_posix() not in ONLY_COMMANDS_ASK
        for line, text in texts(ast.parse(path.read_text(encoding="utf-8")))
        if OPTION.search(text) and "in commands" not in text
    ]
    assert wrong == []
