"""What the package says in arguments of Python is said in options by a command."""

from pathlib import Path

import click
import pytest
from cli_corpus import run

from knnlm.cli import main
from knnlm.cli.wording import in_commands, in_options


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("or give overwrite=True (in commands --overwrite)", "or give --overwrite"),
        ("load them with dtype='float32' (in commands --dtype float32)", "load them with --dtype float32"),
        ("another type (dtype='float32', in commands --dtype float32), and", "another type (--dtype float32), and"),
        ("give the model (in commands --model NAME)", "give the model (--model NAME)"),
        ("a file at a=b.txt", "a file at a=b.txt"),
    ],
)
def test_of_both_ways_the_option_is_shown(said: str, shown: str) -> None:
    assert in_commands(said) == shown


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("d_model is a multiple of 2·n_heads, not 10", "--d-model is a multiple of 2·--heads, not 10"),
        ("found d_model 10", "found --d-model 10"),
        ("context: expected at most 5", "--context: expected at most 5"),
        ("the context: expected", "the context: expected"),
        ("found nothing at /data/d_model/x", "found nothing at /data/d_model/x"),
        ("nprobe: expected", "nprobe: expected"),  # no option of train
    ],
)  # fmt: skip
def test_an_argument_is_shown_as_the_option_of_the_command(said: str, shown: str) -> None:
    command = main.get_command(click.Context(main), "train")
    assert command is not None
    assert in_options(said, command.params) == shown


def test_commands_show_options(texts: Path, model: Path, store: Path, tmp_path: Path) -> None:
    wrong = run("train", texts / "books", "--out", tmp_path / "model", "--d-model", 10, "--heads", 3, code=1).stderr
    assert "--d-model must be a multiple of 2·--heads" in wrong
    assert "d_model" not in wrong
    there = run("dump", texts / "books", "--model", model, "--out", store, code=2).stderr
    assert "--overwrite" in there
    assert "overwrite=True" not in there
    wide = run("build", texts / "books", "--model", model, "--out", tmp_path / "s", "--window", 999, code=1).stderr
    assert "--window: " in wide
    few = run("build", texts / "books", "--model", model, "--out", tmp_path / "s", "--nlist", 99999, code=2).stderr
    assert "leave out --nlist or the preset" in few
