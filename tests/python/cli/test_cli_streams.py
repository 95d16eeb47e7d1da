"""Standard streams that are closed, full or of another encoding: a message and an exit code, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from knnlm.store.datastore import Datastore

pytestmark = pytest.mark.skipif(os.name != "posix", reason="streams are closed by a shell")
KNNLM = f"{sys.executable} -m knnlm"


def shell(line: str, **environment: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a line for the shell, in which KNNLM is the command."""
    done = subprocess.run(
        ["/bin/sh", "-c", line.replace("KNNLM", KNNLM)],
        capture_output=True,
        env={**os.environ, "PYTHONWARNINGS": "error", **environment},
    )
    return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    with Datastore.create(tmp_path / "störe", dim=2, keep_keys="float16") as store:
        store.add([[0.0, 1.0]], [1], "döcument λ")
    return tmp_path / "störe"


@pytest.mark.parametrize("command", ["info", "verify --json"])
def test_closed_standard_output_is_said(vectors: Path, command: str) -> None:
    code, _, error = shell(f"KNNLM {command} {vectors} >&-")
    assert (code, error) == (
        1,
        f"knnlm {command.split()[0]}: standard output: Bad file descriptor; expected it open\n",
    )


@pytest.mark.parametrize("command", ["info STORE", "verify STORE --json", "info --help"])
def test_a_full_standard_output_is_said_once(vectors: Path, tmp_path: Path, command: str) -> None:
    # No file of this process may grow, which fails as a full disk does.
    line = f"ulimit -f 0; KNNLM {command} >{tmp_path}/out".replace("STORE", str(vectors))
    code, _, error = shell(line)
    assert code == 1
    assert error.startswith("knnlm")
    assert "standard output: File too large" in error
    assert len(error.splitlines()) == 1


def test_what_needs_no_standard_output_works_without(vectors: Path) -> None:
    assert shell(f"KNNLM verify {vectors} >&-")[0] == 0
    assert shell(f"KNNLM verify {vectors} >&- 2>&-")[0] == 0
    assert shell(f"KNNLM delete {vectors} 'döcument λ' <&- >&- 2>&-")[0] == 0
    with Datastore.open(vectors) as store:  # no message went into a file of the store
        assert len(store) == 0
        assert store.verify() == []


def test_a_standard_error_that_takes_nothing_ends_no_command(vectors: Path, tmp_path: Path) -> None:
    for closed in (f"2>{tmp_path}/err", "2>&-"):
        assert shell(f"ulimit -f 0; KNNLM verify {vectors} {closed}")[:2] == (0, "")
        assert shell(f"ulimit -f 0; KNNLM info {closed}")[:2] == (2, "")
        code, out, _ = shell(f"ulimit -f 0; KNNLM info {vectors}x --json {closed}")
        assert code == 1
        assert "nothing there" in out


def test_a_reader_that_leaves_is_no_failure_to_tell(vectors: Path) -> None:
    _, out, error = shell(f"KNNLM info {vectors} | head -n 1")
    assert (out.count("\n"), error) == (1, "")


@pytest.mark.parametrize(
    "locale",
    [
        {"PYTHONIOENCODING": "latin-1:strict"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
)
def test_any_encoding_of_the_terminal_will_do(vectors: Path, locale: dict[str, str]) -> None:
    code, out, error = shell(f"KNNLM info {vectors}", **locale)
    assert (code, error) == (0, "")
    assert "generation" in out
    code, _, error = shell(f"KNNLM delete {vectors} $(printf '\\351')", **locale)
    assert code == 2
    assert "expected text in UTF-8" in error
    assert shell(f"KNNLM delete {vectors} 'döcument λ'", **locale)[0] == 0


def test_a_prompt_that_is_no_text_or_is_not_there_is_said(texts: Path, store: Path, model: Path) -> None:
    generate = f"KNNLM generate {store} --model {model} --max-new-tokens 1"
    for data, encoding in (("\\351t\\351", "UTF-8"), ("\\377\\376a", "UTF-16")):  # the second has the mark
        code, _, error = shell(f"printf '{data}' | {generate}")
        assert code == 1
        assert f"standard input: expected text in {encoding}, found" in error
    code, _, error = shell(f"{generate} <&-")
    assert code == 2
    assert "text on standard input, found that closed" in error
    assert shell(f"printf 'thé λ' | {generate}", LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")[0] == 0
