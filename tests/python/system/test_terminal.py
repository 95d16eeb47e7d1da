r"""terminal.py: names, attributes and stored text steer no terminal and forge no line, whatever the command."""

from __future__ import annotations

import io
import json
import re
import unicodedata
import warnings
from pathlib import Path

import click
import pytest
from cli_corpus import run, run_json, sentence
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from knnlm.cli import main, streams
from knnlm.cli.commands import generate
from knnlm.cli.console import facts, note, print_json, table, warn
from knnlm.report.progress import Progress
from knnlm.report.rows import NeighborRow, TokenRow
from knnlm.report.table import to_table
from knnlm.store.datastore import Datastore
from knnlm.system.terminal import printable, printable_json, say
from knnlm.text.documents import ReadReport, read_documents

EVIL = "\x1b[31mred\x1b]0;title\x07 \x9b2J \u202egnp.exe\u2066 a\nskipped: all of it.txt"
STEERS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def is_harmless(text: str) -> bool:
    """Whether it holds nothing that a terminal obeys, and none of its lines is forged."""
    return not STEERS.search(text) and not any(line.startswith("skipped: all of it") for line in text.split("\n"))


def test_what_is_shown():
    assert printable("a\x1b[31m\n\t\x9b\u202e\ud800é λ 漢 🙂") == "a\\x1b[31m\\n\\t\\x9b\\u202e\\ud800é λ 漢 🙂"
    assert printable("a\nb\tc\x1b", keep="\n\t") == "a\nb\tc\\x1b"
    assert printable(printable(EVIL)) == printable(EVIL)


@given(st.text(st.characters(), max_size=20))
def test_nothing_steers_and_nothing_else_changes(text):
    shown = printable(text)
    shown.encode()
    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in shown)
    assert not any(
        unicodedata.bidirectional(c) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI") for c in shown
    )
    if all(unicodedata.category(c) not in ("Cc", "Cs", "Cf", "Zl", "Zp") for c in text):
        assert shown == text


@given(st.dictionaries(st.text(st.characters(), max_size=9), st.text(st.characters(), max_size=9)))
def test_json_keeps_its_values(value):
    text = printable_json(json.dumps(value, indent=1, ensure_ascii=False))
    assert json.loads(text) == value
    text.encode()
    assert not STEERS.search(text)


def test_everything_that_is_printed_goes_through_it(capsys, monkeypatch):
    note(EVIL)
    warn(EVIL)
    say(EVIL)
    table(EVIL[:5], ["a", "b"], [[EVIL, EVIL]])
    facts({EVIL: EVIL})
    print_json({EVIL: [EVIL]})
    with Progress() as progress:
        progress.say(EVIL)
    captured = capsys.readouterr()
    assert "\\x1b[31mred" in captured.out
    assert "\\x1b[31mred" in captured.err
    assert is_harmless(captured.out)
    assert is_harmless(click.unstyle(captured.err))


def test_bars_and_tables_on_a_terminal(monkeypatch):
    file = io.StringIO()
    with Progress(console=Console(file=file, force_terminal=True, width=200, color_system=None)) as progress:
        progress.say(EVIL)
    assert "\\x1b[31mred" in file.getvalue()
    assert "\x1b[31m" not in file.getvalue()
    near = NeighborRow(EVIL, EVIL, EVIL, EVIL, 1.0, 0.5, True)
    row = TokenRow(EVIL, EVIL, EVIL, EVIL, 0.1, 0.2, 0.3, [near])
    file = io.StringIO()
    Console(file=file, width=400, color_system=None).print(to_table([row], width=300))
    assert is_harmless(file.getvalue())
    assert "\\x1b[31mred" in file.getvalue()
    assert "‹" not in file.getvalue()
    file = io.StringIO()
    Console(file=file, width=400, color_system=None).print(to_table([row], width=300, plain=True))
    assert file.getvalue().count("‹") == 2  # what a pipe does not keep of a style


def test_what_reading_says_is_harmless(tmp_path):
    (tmp_path / EVIL).write_text("")
    (tmp_path / f"{EVIL}.jsonl").write_text('{"no text": 1, "\\u001b[31m": 2}\n{"text": "x", "\\u001b\\n": NaN}\n')
    report = ReadReport()
    list(read_documents([tmp_path], report=report))
    assert len(report.skipped) == 2
    assert all(is_harmless(line) for line in report.lines())


@pytest.fixture
def evil(texts: Path, model: Path, tmp_path: Path) -> Path:
    """A store with documents, a model and attributes whose names steer a terminal, made of such a folder."""
    folder = tmp_path / "t\x1b[31m"
    folder.mkdir()
    (folder / EVIL).write_text(sentence(1, 60))
    (folder / f"empty{EVIL}").write_text("")
    (folder / f"rows{EVIL}.jsonl").write_text('{"text": "x", "\\u001b[31m\\n": NaN}\n{"body": "\\u001b"}\n')
    run_json("build", folder, "--model", model, "--out", tmp_path / "store", "--keep-keys", "--threads", 1)
    with Datastore.open(tmp_path / "store") as store:
        attributes = store.attributes
        attributes["model"]["name"] = attributes["autocast"] = EVIL
        attributes["tuned"] = {"lambda_": 0.5, "temperature": 1.0, "k": 4, "rerank": "none", "preset": EVIL}
        attributes["model"]["source"] = str(model)
        attributes["autocast"] = None
        store.set_attributes(attributes)
    return tmp_path / "store"


def test_no_command_is_steered_by_what_a_store_or_a_folder_holds(evil: Path, model: Path, tmp_path: Path) -> None:
    folder = next(path for path in tmp_path.iterdir() if path.name.startswith("t"))
    document, out = next(p for p in folder.iterdir() if p.name.startswith("\x1b")), tmp_path / f"out{EVIL}"
    page = tmp_path / f"page{EVIL}.html"
    test = ["--threads", 1]
    commands = [
        ("build", folder, "--model", model, "--out", out, *test),
        ("dump", folder, "--model", model, "--out", tmp_path / f"dump{EVIL}", *test),
        ("build", folder, "--model", model, "--dry-run", *test),
        ("train", folder, "--out", tmp_path / f"model{EVIL}", "--steps", 1, "--vocab-size", 300, "--d-model", 16,
         "--layers", 2, "--heads", 2, "--context", 32, "--batch-tokens", 256, *test),
        ("info", evil),
        ("inspect", evil, folder, *test),
        ("inspect", evil, "--string", "the store", "--html", page, *test),
        ("eval", evil, folder, *test),
        ("tune", evil, folder, "--plots", tmp_path / f"plots{EVIL}", *test),
        ("generate", evil, "--prompt", "the", "--max-new-tokens", 3, *test),
        ("export", evil, folder, "--out", tmp_path / f"{EVIL}.safetensors", *test),
        ("export", evil, "--out", tmp_path / f"{EVIL}.arrow"),
        ("add", evil, folder, "--keep-removed", *test),
        ("add", evil, f"{folder}/*.jsonl", *test),
        ("replace", evil, EVIL, document, *test),
        ("verify", evil),
        ("delete", evil, EVIL),
        ("compact", evil),
    ]  # fmt: skip
    failing = [
        ("info", tmp_path / EVIL),
        ("build", tmp_path / EVIL, "--model", model, "--out", tmp_path / "new"),
        ("build", folder, "--model", model, "--out", out),
        ("build", folder, "--model", model, "--out", folder, "--overwrite"),
        ("delete", evil, EVIL),
        ("replace", evil, EVIL, document),
        ("inspect", evil, "--string", "x", "--html", page),
        ("eval", evil, tmp_path / EVIL),
        ("eval", evil, folder, "--split-documents", f"({EVIL}"),
        (EVIL,),
        ("info", evil, f"--{EVIL}"),
        ("tune", evil, folder, "--rerank", EVIL),
    ]
    for arguments in commands:
        result = run(*arguments)
        assert is_harmless(result.stdout), arguments
        assert is_harmless(click.unstyle(result.stderr)), arguments
    assert "\\x1b[31mred" in run("info", evil).stdout
    assert not STEERS.search(page.read_text().replace("\t", " "))
    for arguments in failing:
        for more in ((), ("--json",), ("--debug",)):
            given = [str(argument) for argument in (*arguments, *more)]
            result = CliRunner().invoke(main, given)
            assert result.exit_code in (1, 2), given
            assert is_harmless(result.stdout), given
            assert is_harmless(click.unstyle(result.stderr)), given
            assert re.search(r"\\(x1b|u001b|u\{1b\})", result.output), given  # as Python, JSON and Rust write it


def test_warnings_of_libraries_are_one_harmless_line() -> None:
    before = warnings.formatwarning
    with streams.plain_warnings():
        line = warnings.formatwarning(EVIL, UserWarning, "file.py", 1)
    assert warnings.formatwarning is before
    assert line == f"warning: {printable(EVIL)}\n"


def test_what_a_model_writes_steers_no_terminal_and_reaches_a_file_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate.sys, "stdout", io.StringIO())
    assert generate._shown(EVIL) == EVIL
    monkeypatch.setattr(generate.sys.stdout, "isatty", lambda: True)
    assert generate._shown(EVIL) == printable(EVIL, keep="\n\t")
