"""progress.py: bars on a terminal, lines in a log, silence for machines."""

import io

import pytest
from rich.console import Console

from knnlm.report import progress
from knnlm.report.progress import Progress


def test_lines_where_stderr_is_no_terminal(monkeypatch, capsys):
    clock = iter(float(second) for second in range(0, 1000, 4))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with Progress(console=Console(file=io.StringIO())) as p:
        for done in range(0, 101, 10):
            p("dump", done, 100)
        p.track("build", 3, unit="lists").advance(3)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2].startswith("dump: 100/100, ")
    assert lines[-1].startswith("build: 3/3 lists, ")
    assert lines[-1].endswith(" lists/s")
    assert 3 < len(lines) < 12  # one line each ten seconds, not one each call
    assert any("s left" in line for line in lines)


def test_a_rate_is_that_of_the_stage_and_a_short_stage_leaves_no_line(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress(console=Console(file=io.StringIO())) as p:
        p("dump", 0, 100)
        now[0] = 5.0
        p("dump", 100, 100)
        p("quick", 0, 3)
        now[0] = 5.5
        p("quick", 3, 3)
        p.track("train", 90, unit="s")
        now[0] = 95.0
        p("train", 90, 90)
        now[0] = 500.0  # other work
    assert capsys.readouterr().err.splitlines() == ["dump: 100/100, 20/s", "train: 90/90 s"]


def test_no_line_for_what_took_no_time_or_failed(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress(console=Console(file=io.StringIO())) as p:
        p("instant", 0, 1)
        p("slow", 0, 2)
        p("instant", 1, 1)
        now[0] = 3.0
        p("slow", 2, 2)
        p.say("a word")
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == ["slow", "a word"]
    with pytest.raises(RuntimeError), Progress(console=Console(file=io.StringIO())) as p:  # noqa: PT012
        p("fails", 0, 2)
        now[0] = 9.0
        p("fails", 1, 2)
        raise RuntimeError
    assert capsys.readouterr().err == ""


def test_a_word_between_bars_and_none_for_machines(capsys):
    file = io.StringIO()
    with Progress(console=Console(file=file, force_terminal=True, width=120)) as p:
        p("dump", 1, 2)
        p.say("perplexity [12]")
    assert "perplexity [12]" in file.getvalue()
    with Progress(json=True) as p:
        p.say("perplexity")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("option", ["json", "quiet"])
def test_silence(option, capsys):
    with Progress(**{option: True}) as p:
        p("dump", 1, 2)
        p.track("x", 3).update(3)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_bars_on_a_terminal():
    file = io.StringIO()
    with Progress(console=Console(file=file, force_terminal=True, width=120)) as p:
        task = p.track("dump", 2000, unit="tok")
        task.advance(500)
        task.advance(1500)
        assert task.done == 2000
        p("unknown length", 7, 0)
    text = file.getvalue()
    assert "dump" in text
    assert "2,000/2,000 tok" in text
    assert "unknown length" in text


def test_an_error_passes_through():
    with pytest.raises(RuntimeError, match="inside"), Progress(quiet=True):
        raise RuntimeError("inside")


def test_at_the_end_no_bar_is_left_half_way():
    file = io.StringIO()
    with Progress(console=Console(file=file, force_terminal=True, width=120)) as p:
        p.track("estimate", unit="tok").update(900, 1000)
        p.track("index", 100, "%").update(40)
        p("begun", 0, 1)
        p("unknown", 7, 0)
        bars = p._bars
    assert bars is not None
    assert all(task.finished for task in bars.tasks)
    last = file.getvalue().split("estimate")[-1]
    assert "900 tok" in last
    assert "1,000" not in last
    assert "100/100 %" in last
    with pytest.raises(RuntimeError), Progress(console=Console(file=file, force_terminal=True, width=120)) as p:  # noqa: PT012
        p("fails", 1, 2)
        bars = p._bars
        raise RuntimeError
    assert not bars.tasks[0].finished


@pytest.mark.parametrize(("per_second", "shown"), [(12345.6, "12,346"), (87, "87"), (3.21, "3.2"), (0.42, "0.4")])
def test_a_slow_rate_keeps_its_decimals(per_second, shown):
    assert progress.rate(per_second) == shown
    assert float(progress.rate(0.031)) == 0.031
