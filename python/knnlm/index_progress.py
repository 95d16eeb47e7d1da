"""One bar for the stages of an index build."""

from __future__ import annotations

from collections.abc import Callable

from knnlm.progress import Progress

STAGES = ("sample", "lists", "words", "calibrate", "assign", "encode")


def index_progress(progress: Progress, name: str) -> Callable[[str, int, int], None]:
    """A callable for `Datastore.build` that shows the whole build as one bar, in per cent.

    Each stage is an equal part of it; a stage that is not listed leaves the bar where it is.
    """
    task = progress.track(name, 100, "%")

    def update(stage: str, done: int, total: int) -> None:
        if stage in STAGES:
            part = (STAGES.index(stage) + min(1.0, done / total if total else 0.0)) / len(STAGES)
            task.update(max(task.done, round(100 * part)))

    return update
