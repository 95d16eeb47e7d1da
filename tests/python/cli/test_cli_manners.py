"""What people expect of any command: quiet, verbose, sections of help, variables, suggestions, completion, no color."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import click
import numpy as np
import pytest
from cli_corpus import run, run_json
from click.testing import CliRunner

from knnlm.cli import main
from knnlm.cli.console import SAID_EACH_TIME
from knnlm.cli.sections import SECTIONS
from knnlm.report.progress import Progress
from knnlm.store.datastore import Datastore
from knnlm.system.terminal import quietly

NAMES = main.list_commands(click.Context(main))


def command(name: str) -> click.Command:
    found = main.get_command(click.Context(main), name)
    assert found is not None
    return found


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    with Datastore.create(tmp_path / "store", dim=4, keep_keys="float16") as store:
        store.add(np.eye(4, dtype=np.float32), np.arange(4), document="one")
    return tmp_path / "store"


def test_quiet_leaves_out_notes_and_keeps_errors(vectors: Path) -> None:
    assert "4 entries indexed" in run("build", vectors).stdout
    quiet = run("build", vectors, "--retrain", "--quiet")
    assert quiet.stderr == ""
    assert "4 entries indexed" in quiet.stdout  # a result is no note
    assert "tokens" in run("build", vectors, "--retrain", "--dry-run", "--quiet").stdout
    assert run("delete", vectors, "two", "-q", code=1).stderr.startswith("knnlm delete: ")
    assert run_json("verify", vectors, "-q")["sound"]
    assert "the traceback" in run("verify", vectors, "--help").stdout
    assert "Traceback" in run("delete", vectors, "two", "-q", "--debug", code=1).stderr
    assert "sound" in run("verify", vectors).stderr  # the next one is not quiet


def test_quiet_leaves_out_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with quietly(), Progress() as progress:
        progress.say("a line")
        assert progress.silent
    with Progress() as progress:
        progress.say("another")
    assert capsys.readouterr().err == "another\n"


def test_verbose_shows_what_the_package_logs(vectors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verify = Datastore.verify_path

    def logged(*given: object) -> list[str]:
        logging.getLogger("knnlm.store").debug("looks at \x1b[31m%s", "it")
        return verify(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(Datastore, "verify_path", staticmethod(logged))
    said = run("verify", vectors, "-v").stderr
    assert re.search(r"^\d+\.\d s knnlm: Python 3", said, re.M)
    assert re.search(r"^\d+\.\d s knnlm\.store: looks at \\x1b\[31mit$", said, re.M)
    assert "looks at" not in run("verify", vectors).stderr
    assert not logging.getLogger("knnlm").handlers
    assert "exclude each other" in run("verify", vectors, "-q", "-v", code=2).stderr


def test_a_mistyped_name_gets_a_suggestion() -> None:
    assert "no such command 'evall': did you mean eval or lm-eval?" in run("evall", code=2).stderr
    assert "no such command 'frobnicate': knnlm --help lists them" in run("frobnicate", code=2).stderr
    assert "--model" in run("eval", "store", "text", "--modle", "x", code=2).stderr.splitlines()[-1]


def test_options_come_in_sections() -> None:
    text = run("build", "--help").stdout
    heads = re.findall(r"^(\S.*):$", text, re.M)
    assert heads == [name for name in SECTIONS if name != "Search and mixing"]
    assert text.index("Text:") < text.index("--text-field") < text.index("Keys and windows:") < text.index("--layer")
    assert text.index("Output:") < text.index("--json") < text.index("--help")
    assert "RANGE" not in text
    assert "x>=" not in text
    assert "[0<=x<=1]" in run("eval", "--help").stdout


def test_every_name_in_a_section_is_that_of_an_option() -> None:
    known = {param.name for name in NAMES for param in command(name).params}
    named = {param for names in SECTIONS.values() for param in names}
    assert named - known <= {"help", "_click_default_help", "name_field"}


def test_variables_set_options_and_the_command_line_stands_above_them(vectors: Path) -> None:
    def documents(*arguments: str, **variables: str) -> str:
        result = CliRunner().invoke(main, ["info", str(vectors), *arguments], env=variables)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    assert documents("--documents") == documents(KNNLM_INFO_DOCUMENTS="1") != documents()
    assert documents(KNNLM_INFO_JSON="1").startswith("{")
    said = CliRunner().invoke(main, ["build", str(vectors)], env={"KNNLM_BUILD_NLIST": "none"})
    assert said.exit_code == 2
    assert "--nlist" in said.stderr
    over = CliRunner().invoke(main, ["build", str(vectors), "--nlist", "2"], env={"KNNLM_BUILD_NLIST": "none"})
    assert over.exit_code == 0, over.stderr


def test_a_wrong_value_of_a_variable_names_it(vectors: Path) -> None:
    wrong = {"KNNLM_BUILD_NLIST": "none", "KNNLM_BUILD_CODE": "64"}
    for name, value in wrong.items():
        said = CliRunner().invoke(main, ["build", str(vectors)], env={name: value})
        assert said.exit_code == 2
        option = "--" + name.rpartition("_")[2].lower()
        assert f"'{option}' (environment variable {name})" in said.stderr
    assert "variable" not in run("build", vectors, "--nlist", "none", code=2).stderr


def test_a_variable_asks_for_json_of_wrong_usage_too(vectors: Path) -> None:
    for value, is_json in (("1", True), ("yes", True), ("0", False)):
        told = CliRunner().invoke(main, ["build", str(vectors), "--nlist", "none"], env={"KNNLM_BUILD_JSON": value})
        assert told.exit_code == 2
        assert told.stdout.startswith("{") == is_json
    told = CliRunner().invoke(main, ["info", str(vectors), "--wrong"], env={"KNNLM_BUILD_JSON": "1"})
    assert told.stdout == ""


def test_what_was_skipped_is_said_although_quiet(texts: Path, model: Path, tmp_path: Path) -> None:
    said = run("build", texts / "books", "--model", model, "--out", tmp_path / "store", "--quiet").stderr
    assert said.startswith("warning: skipped: empty.txt: ")
    assert said.count("\n") == 1


def test_tune_searches_with_the_index_unless_it_is_told_to_scan() -> None:
    assert "--no-exact" not in run("tune", "--help").stdout
    assert "--no-exact" in run("eval", "--help").stdout


@pytest.mark.parametrize("name", NAMES)
def test_a_variable_is_named_as_its_option_is(name: str) -> None:
    told = command(name)
    context = click.Context(told, info_name=name, parent=click.Context(main, auto_envvar_prefix="KNNLM"))
    with suppress(click.UsageError):  # arguments are missing
        told.parse_args(context, [])
    for param in told.params:
        if isinstance(param, click.Option) and param.name not in SAID_EACH_TIME:
            variable = (
                f"KNNLM_{name.upper().replace('-', '_')}_{max(param.opts, key=len)[2:].replace('-', '_').upper()}"
            )
            for asked in {variable, f"KNNLM_{name.upper().replace('-', '_')}_{str(param.name).upper()}"}:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setenv(asked, "7")
                    assert (param.resolve_envvar_value(context) == "7") == (asked == variable), asked


def test_a_seed_of_a_variable_is_a_seed_that_was_given(vectors: Path) -> None:
    run("build", vectors)
    first = run_json("info", vectors)
    again = CliRunner().invoke(main, ["build", str(vectors), "--retrain"], env={"KNNLM_BUILD_SEED": "5"})
    assert again.exit_code == 0, again.stderr
    assert first["seed"] == 0
    assert run_json("info", vectors)["seed"] == 5


def test_no_variable_asks_for_help_or_replaces_or_trusts() -> None:
    for name in NAMES:
        for param in command(name).params:
            if param.name in ("overwrite", "trust_remote_code"):
                assert not param.allow_from_autoenv, name  # type: ignore[attr-defined]
    variables = {"KNNLM_HELP": "1", "KNNLM_VERSION": "1", "KNNLM_INFO_HELP": "1", "KNNLM_REQUIRE_TEST_PACKAGES": "1"}
    result = CliRunner().invoke(main, ["info", "nowhere"], env=variables)
    assert result.exit_code == 1
    assert "expected a store at nowhere" in result.stderr


@pytest.mark.parametrize("name", NAMES)
def test_no_variable_of_the_tests_is_an_option(name: str) -> None:
    ours = {"KNNLM_REQUIRE_TEST_PACKAGES", "KNNLM_FUZZ_EXAMPLES", "KNNLM_FLIPS", "KNNLM_REQUIRE_ISA"}
    context = click.Context(command(name), info_name=name, parent=click.Context(main, auto_envvar_prefix="KNNLM"))
    assert context.auto_envvar_prefix == f"KNNLM_{name.upper().replace('-', '_')}"
    flags = {flag[2:].replace("-", "_").upper() for param in command(name).params for flag in param.opts}
    assert not ours & {f"{context.auto_envvar_prefix}_{flag}" for flag in flags}


@pytest.mark.parametrize(("given", "completed"), [("he", True), ("hf:na", False)])
def test_the_shell_completes_files_for_text(given: str, completed: bool) -> None:
    words = f"knnlm eval store {given}"
    done = subprocess.run(
        [sys.executable, "-c", "from knnlm.cli import main; main(prog_name='knnlm')"],
        env={**os.environ, "_KNNLM_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == (f"file,{given}" if completed else "")
    assert done.stderr == ""


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("plain", [True, False])
def test_no_color(vectors: Path, plain: bool) -> None:
    import pty

    code = "from knnlm.cli.console import warn\nimport click\n"
    code += "import knnlm.cli as c\n@c.main.command('x')\ndef x(): warn('seen')\n"
    code += "c._Commands.get_command = lambda s, ctx, n: x\nc._COMMANDS['x'] = ''\nc.main(['x'], prog_name='knnlm')"
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "NO_COLOR": "1" if plain else ""}
    subprocess.run([sys.executable, "-c", code], env=environment, stderr=follower, stdout=follower, check=True)
    os.close(follower)
    text = os.read(leader, 10_000).decode()
    os.close(leader)
    assert "seen" in text
    assert ("\x1b[" in text) != plain


def test_export_of_codes_says_that_its_keys_are_decoded(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    for keep, said in (("float16", False), (None, True)):
        path = tmp_path / str(keep)
        with Datastore.create(path, dim=4, keep_keys=keep) as store:  # type: ignore[arg-type]
            store.add(np.eye(4, dtype=np.float32), np.arange(4), document="one")
            store.build()
        told = run("export", path, "--out", tmp_path / f"{keep}.arrow").stderr
        assert ("its keys are decoded from the codes" in told) == said
        assert "decoded" not in run("export", path, "--out", tmp_path / f"{keep}-no.arrow", "--no-keys").stderr
