"""What a build tells of its stages: no part of it that runs the model goes on without a sign of life."""

from __future__ import annotations

import io
from concurrent.futures import wait
from types import SimpleNamespace

import pytest
from one_pass_corpus import DIM, build, documents, load_tiny
from rich.console import Console
from tiny_lm import tiny

from knnlm.cli.work import stages
from knnlm.report.progress import Progress
from knnlm.text.inputs import TokenDocument

TOTAL = sum(len(document.tokens) for document in documents())


@pytest.fixture(scope="module")
def loaded():
    return tiny(d=DIM)


def told_by(run, **options):
    told: list[tuple[str, int, int]] = []
    run(progress=lambda *stage: told.append(stage), **options)
    return told


def check(told):
    sampled = [(done, total) for stage, done, total in told if stage == "sample" and total]
    assert len(sampled) > 3
    assert [done for done, _ in sampled] == sorted(done for done, _ in sampled)
    assert sampled[-1][0] == sampled[-1][1] == TOTAL  # of a short text all is drawn
    run = [(stage, done) for stage, done, _ in told if stage in ("model", "encode")]
    assert len(run) > 2 * sum(stage == "encode" for stage, _ in run)  # several batches a part
    assert [done for _, done in run] == sorted(done for _, done in run)
    assert run[-1] == ("encode", TOTAL)


def test_each_batch_of_the_model_is_told(loaded, tmp_path):
    told = told_by(lambda **given: build(tmp_path / "store", loaded, batch_tokens=48, **given))
    check(told)


def test_workers_tell_what_they_have_done(loaded, tmp_path, monkeypatch):
    waited = set()

    def late(results, timeout):
        """Nothing is done when it is first looked at, everything the next time."""
        if results in waited:
            return wait(results)
        waited.add(results)
        wait(results)
        return SimpleNamespace(done=set())

    monkeypatch.setattr("knnlm.build.encode.wait", late)
    told = told_by(
        lambda **given: build(tmp_path / "store", loaded, workers=2, load=load_tiny, batch_tokens=48, **given)
    )
    run = [(stage, done) for stage, done, _ in told if stage in ("model", "encode")]
    assert [stage for stage, _ in run] == ["model", "encode"] * 8
    # At least the part that is then committed; others may be on their way.
    assert all(said >= committed for (_, said), (_, committed) in zip(run[::2], run[1::2], strict=True))
    assert all(0 < done <= TOTAL for _, done in run)


def test_the_bar_of_a_build_counts_what_the_model_has_run_over():
    with Progress(console=Console(file=io.StringIO(), force_terminal=True, width=120)) as progress:
        show = stages(progress)
        show("sample", 10, 40)
        show("sample", 0, 0)  # of the index
        assert (progress.track("sample keys").done, progress.track("sample keys").total) == (10, 40)
        show("model", 30, 100)
        show("encode", 20, 100)  # committed; another part is on its way
        assert progress.track("encode").done == 30
        show("encode", 100, 100)
        assert progress.track("encode").done == 100
        for stage in (("words", 0, 0), ("calibrate", 1, 3), ("measure recall", 0, 4)):
            show(*stage)
        assert progress.track("words").amount() == ""  # does not say how far it is
        bars = progress._bars
        assert bars is not None
        assert {task.description for task in bars.tasks if not task.finished} == {"sample keys", "measure recall"}
        assert progress.track("calibrate").done == 3
    assert all(task.stop_time is not None or task.finished for task in bars.tasks)


def test_documents_that_repeat_another_are_counted(loaded, tmp_path):
    def twice():
        first, *others = documents()
        return [first, *others, TokenDocument("again", first.tokens), TokenDocument("and again", first.tokens)]

    assert build(tmp_path / "store", loaded, twice).duplicates == 2
    assert build(tmp_path / "once", loaded).duplicates == 0
