"""One bar for the stages of an index build."""

from __future__ import annotations

from collections.abc import Callable

from knnlm.report.progress import Progress

STAGES = ("sample", "lists", "words", "calibrate", "assign", "encode")


COMPACT_STAGES = ("copy raw keys", "copy values", "merge lists")


def index_progress(progress: Progress, name: str, stages: tuple[str, ...] = STAGES) -> Callable[[str, int, int], None]:
    """A callable for `Datastore.build` (or with `COMPACT_STAGES` `compact`) that shows the work as one bar, in %.

    Each stage is an equal part of it; a stage that is not listed leaves the bar where it is.
    """
    task = progress.track(name, 100, "%")

    def update(stage: str, done: int, total: int) -> None:
        if stage in stages:
            part = (stages.index(stage) + min(1.0, done / total if total else 0.0)) / len(stages)
            task.update(max(task.done, round(100 * part)))

    return update
