"""The bar of an index build never goes back and ends full."""

import io

from rich.console import Console

from knnlm.report.index_progress import STAGES, index_progress
from knnlm.report.progress import Progress


def test_the_bar_goes_up_to_the_end_whatever_is_reported() -> None:
    with Progress(console=Console(file=io.StringIO())) as progress:
        update = index_progress(progress, "index")
        task = progress.track("index")
        seen = [task.done]
        for stage in (*STAGES, "something new"):
            for done, total in ((0, 0), (1, 3), (3, 3), (2, 3)):
                update(stage, done, total)
                seen.append(task.done)
    assert seen == sorted(seen)
    assert seen[0] == 0
    assert seen[-1] == 100
