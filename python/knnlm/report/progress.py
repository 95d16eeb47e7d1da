"""Progress bars on stderr: a thin wrapper over `rich.progress`, silent where output is for a machine."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from knnlm.system.terminal import is_quiet, printable, say

PLAIN_SECONDS = 10.0  # between lines where stderr is no terminal
SHORTEST_SECONDS = 1.0  # a stage that took less leaves no line there


class Progress:
    """``with Progress() as p: p("dump", 5, 100)``: a bar per stage with rate and time left.

    The object is itself a callable ``progress(stage, done, total)``, the form that every long operation of the package
    takes; ``total`` 0 means unknown. On a terminal it draws bars, in a pipe or log it prints a line every ten seconds
    and one at the end of a stage that took a second, and with ``json=True`` or ``quiet=True``, or within
    `terminal.quietly`, nothing.
    """

    def __init__(self, json: bool = False, quiet: bool = False, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self.silent = json or quiet or is_quiet()
        self._bars: RichProgress | None = None
        self._tasks: dict[str, Task] = {}

    def __enter__(self) -> Progress:
        """Start drawing."""
        if not self.silent and self._console.is_terminal:
            self._bars = RichProgress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[amount]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last state on the screen: without an error, all that was begun is done."""
        for task in self._tasks.values() if kind is None else ():  # after an error its message is enough
            task.end()
        if self._bars is not None:
            for task in self._tasks.values():
                task.stop()
            self._bars.stop()
            self._bars = None

    def say(self, text: str) -> None:
        """A line above the bars, or in the log; nothing where output is for a machine."""
        if self._bars is not None:
            self._bars.console.print(printable(text), markup=False, highlight=False)
        elif not self.silent:
            say(text)

    def track(self, stage: str, total: int | None = None, unit: str = "") -> Task:
        """The bar of one stage; call ``advance`` or ``update`` on it. A stage named before goes on."""
        if stage not in self._tasks:
            self._tasks[stage] = Task(self, stage, total or 0, unit)
        return self._tasks[stage]

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` steps of ``stage`` are done."""
        self.track(stage, total).update(done, total)


def rate(per_second: float) -> str:
    """A rate to read: 12,345, 87, 3.2, 0.4, 0.031."""
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.{1 if per_second >= 0.1 else 3}f}"


class Task:
    """One bar."""

    def __init__(self, owner: Progress, stage: str, total: int, unit: str) -> None:
        self._owner, self.stage, self.total, self.unit = owner, stage, total, unit
        self.done = 0
        self._started = self._last_line = self._updated = time.monotonic()
        self._printed = -1
        bars = owner._bars
        self._id = bars.add_task(stage, total=total or None, amount="") if bars is not None else None

    def advance(self, by: int = 1) -> None:
        """``by`` more steps are done."""
        self.update(self.done + by)

    def update(self, done: int, total: int | None = None) -> None:
        """Set the number of steps done, and perhaps a better total."""
        self.done = done
        self._updated = time.monotonic()
        if total is not None:
            self.total = total
        if self._id is not None and self._owner._bars is not None:
            self._owner._bars.update(self._id, completed=done, total=self.total or None, amount=self.amount())
        elif self.total and done >= self.total:
            self.last_line()
        elif self._updated - self._last_line >= PLAIN_SECONDS:
            self.line()

    def stop(self) -> None:
        """It ends where it is."""
        if self._id is not None and self._owner._bars is not None:
            self._owner._bars.stop_task(self._id)

    def finish(self) -> None:
        """It is done, whether or not it said how far it was."""
        if self.total:
            self.update(self.total)
        elif self._id is not None and self._owner._bars is not None:
            self._owner._bars.update(self._id, completed=1, total=1, amount=self.amount())  # or it would go on

    def end(self) -> None:
        """It is done at the end of the command; a total that was not reached was an estimate, or a budget."""
        if self.done and self.done < self.total and self.unit != "%":
            self.total = 0
        self.done = max(self.done, self.total)  # not by `update`: it took no time since the last one
        if self._id is not None and self._owner._bars is not None:
            self._owner._bars.update(self._id, completed=1, total=1, amount=self.amount())
        self.last_line()

    def rate(self) -> float:
        """Steps per second between the begin of the stage and the last report."""
        return self.done / max(self._updated - self._started, 1e-9)

    def amount(self) -> str:
        """``done/total unit, rate``; nothing for a stage that does not say how far it is."""
        if not (self.done or self.total):
            return ""
        whole = f"{self.done:,}" + (f"/{self.total:,}" if self.total else "")
        text = f"{whole} {self.unit}".rstrip()
        return text if self.unit == "s" else f"{text}, {rate(self.rate())}{' ' + self.unit if self.unit else ''}/s"

    def line(self) -> None:
        """Print one plain line where there is no bar and somebody reads."""
        if self._owner.silent or self._id is not None or self._printed == self.done or not (self.done or self.total):
            return
        self._printed, self._last_line = self.done, self._updated
        left = (self.total - self.done) / max(self.rate(), 1e-9) if self.total > self.done else 0.0
        say(f"{self.stage}: {self.amount()}" + (f", {left:,.0f} s left" if left else ""))

    def last_line(self) -> None:
        """The same at the end of a stage, if it took long enough to be told."""
        if self._updated - self._started >= SHORTEST_SECONDS:
            self.line()
