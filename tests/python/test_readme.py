"""The README's marked code blocks run, in its order but for one that says otherwise, in a folder with a little text."""

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from knnlm.cli import main
from knnlm.demo.stdlib_text import language_reference

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"<!-- test: ([^\n]*) -->\n```(sh|python)\n(.*?)```", re.DOTALL)
SHORTER = {
    "--seconds 600": "--steps 2 --d-model 32 --layers 2 --heads 2 --context 64 --batch-tokens 256 --vocab-size 300"
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder as the README's reader has it: books/, tuning.txt, held-out.txt, corrected.txt."""
    path = tmp_path_factory.mktemp("readme")
    text = language_reference()
    (path / "books").mkdir()
    for number, document in enumerate(text.train[:4]):
        (path / "books" / f"{number}.txt").write_text(document.text[:3000], encoding="utf-8")
    (path / "tuning.txt").write_text(text.valid[0].text[:1500], encoding="utf-8")
    (path / "held-out.txt").write_text(text.test[0].text[:1500], encoding="utf-8")
    (path / "corrected.txt").write_text(text.train[1].text[:2000], encoding="utf-8")
    before = Path.cwd()
    os.chdir(path)
    yield path
    os.chdir(before)


def blocks() -> list[tuple[str, str, str]]:
    """What is said of each block, its language and its code; last what needs commands that stand below it."""
    return sorted(BLOCK.findall(README.read_text(encoding="utf-8")), key=lambda block: "commands below" in block[0])


def test_there_is_something_to_run() -> None:
    assert [language for _, language, _ in blocks()].count("python") >= 2
    assert [language for _, language, _ in blocks()].count("sh") >= 2
    assert all(any(long in code for _, _, code in blocks()) for long in SHORTER)


def test_every_command_is_named() -> None:
    text = README.read_text(encoding="utf-8")
    names = main.list_commands(click.Context(main))
    assert len(names) > 10
    assert [name for name in names if f"`{name}" not in text and f"knnlm {name}" not in text] == []


@pytest.mark.parametrize(("what", "language", "code"), blocks())
def test_block(folder: Path, what: str, language: str, code: str, capsys: pytest.CaptureFixture[str]) -> None:
    if language == "python":
        exec(compile(code, str(README), "exec"), {"__name__": "__readme__"})
        assert capsys.readouterr().out.strip()
        return
    for long, short in SHORTER.items():
        code = code.replace(long, short)
    for line in code.strip().splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "knnlm"
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, f"{line}\n{result.output}"
    assert (folder / "neighbors.html").stat().st_size > 1000


def test_links_to_files_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", README.read_text(encoding="utf-8")):
        assert (README.parent / target).exists(), target


def test_the_pipeline_table_names_files_that_exist() -> None:
    rows = [
        line
        for line in README.read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and "`" in line and "| step" not in line
    ]
    python = [name for row in rows for name in re.findall(r"`([a-z_/]+(?:\.py|/))`", row.split("|")[2])]
    rust = [name for row in rows for name in re.findall(r"`([a-z_]+/)`", row.split("|")[3])]
    assert len(python) > 15
    assert len(rust) >= 4
    missing = [name for name in python if not (README.parent / "python" / "knnlm" / name).exists()]
    missing += [name for name in rust if not (README.parent / "rust" / name).exists()]
    assert missing == []
