"""Kills builds with SIGKILL at instants of every phase, starts them again until they end, and compares every byte.

`test_killed_builds.py` runs a short form. The full one prints a histogram of the kills by what was on disk then:

    python tests/python/support/killed_builds.py --kills 30 --seed 0

A life begins with a folder of its own and ends when the command has ended, or was killed with nothing left to do: every
file is then that of the uninterrupted run. A run that ends has gone on from the last commit before it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli_corpus import sentence

CONTEXT = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
if sys.platform != "win32":  # imports are most of a short run: they are done once, in the process that forks the others
    CONTEXT.set_forkserver_preload(
        ["knnlm.build.one_pass", "knnlm.build.retrain", "knnlm.model.load", "knnlm.train.loop", "knnlm.cli"]
    )

GIVEN = "documents.tmp"
"""Marks a store that was there before a build with --overwrite; nothing removes it but its end."""


def begin(arguments: list[Any], log: Path, part_tokens: int | None = None) -> Any:
    """A process that is a command and leads a group: `python -m knnlm`, or for small parts a fork that calls it."""
    process = CONTEXT.Process(target=_become, args=([str(a) for a in arguments], log, part_tokens))
    process.start()
    return process


def _become(arguments: list[str], log: Path, part_tokens: int | None) -> None:
    os.setsid()
    for descriptor, name in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(log.with_suffix(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    if part_tokens is None:
        os.execv(sys.executable, [sys.executable, "-m", "knnlm", *arguments])
    import knnlm.build.one_pass
    import knnlm.build.retrain
    from knnlm.cli import main

    for function in (knnlm.build.one_pass.build_in_one_pass, knnlm.build.retrain.retrain):
        assert function.__kwdefaults__ is not None
        function.__kwdefaults__["part_tokens"] = part_tokens
    main(arguments)


def kill(process: Any, group: bool) -> None:
    """Ends a process at once, with its workers or leaving them to end by themselves."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
        if group:
            os.killpg(process.pid, signal.SIGKILL)  # none if it has not begun to lead one
    process.join()


def generation(store: Path) -> int:
    """The newest of a store, 0 where there is none."""
    return max((int(path.stem.split("-")[1]) for path in store.glob("manifest-*.json")), default=0)


def contents(place: Path) -> dict[str, str]:
    """Every file under a place, by its path in it."""
    files = sorted(path for path in place.rglob("*") if path.is_file())
    return {str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@dataclass
class Job:
    """A command that is killed, and what its uninterrupted run was: parts, seconds of each phase, every file."""

    name: str
    command: list[Any]
    given: Path | None = None
    parts: int = 0
    last: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    expected: dict[str, str] = field(default_factory=dict)


class Build(Job):
    """`knnlm build TEXT`; where a store is given, with --overwrite."""

    phases = ("before the store", "learning", "encoding", "joining lists", "measuring recall", "publishing",
              "removing the old", "published")  # fmt: skip

    def prepare(self, place: Path) -> list[Any]:
        """An empty place or one with the given store; the command."""
        place.mkdir(parents=True)
        if self.given is not None:
            shutil.copytree(self.given, place / "store")
            (place / "store" / GIVEN).touch()
        return [*self.command, "--out", place / "store", *(["--overwrite"] if self.given else [])]

    def phase(self, place: Path) -> str:
        """What is on disk."""
        if (place / "store").exists() and not (place / "store" / GIVEN).exists():
            return self.phases[7 if [path.name for path in place.iterdir()] == ["store"] else 6]
        done = generation(place / ".store.building")
        after = self.last - done  # compaction and calibration are generations after the last part
        return self.phases[done] if done < 2 else self.phases[5 - after] if 0 <= after < 3 else "encoding"

    def committed(self, place: Path) -> int:
        """Parts that the next run goes on from."""
        building = place / ".store.building"
        former = (building / "replaced.tmp").exists()
        return 0 if former else min(max(0, generation(building) - 2), self.parts)


class Retrain(Job):
    """`knnlm build STORE --retrain` of a store of codes."""

    phases = ("before the plan", "learning", "encoding", "publishing", "removing what was staged", "published")

    def prepare(self, place: Path) -> list[Any]:
        """A copy of the store; the command."""
        assert self.given is not None
        shutil.copytree(self.given, place / "store")
        self.before = generation(self.given)
        return [*self.command, place / "store", "--retrain"]

    def phase(self, place: Path) -> str:
        """What is on disk."""
        staged = place / "store" / "retraining"
        if generation(place / "store") > self.before:
            return self.phases[4 if staged.exists() else 5]
        if not (staged / "codebook.json").exists():
            return self.phases[1 if (staged / "plan.json").exists() else 0]
        return self.phases[3 if self.parts and self.committed(place) == self.parts else 2]

    def committed(self, place: Path) -> int:
        """Parts that the next run goes on from."""
        staged = place / "store" / "retraining"
        if generation(place / "store") == self.before and not (staged / "codebook.json").exists():
            return 0
        return next(n for n in range(10**6) if not (staged / f"part-{n:08}.json").exists())


class Campaign:
    """Jobs killed again and again, from one seed."""

    def __init__(self, folder: Path, seed: int, part_tokens: int | None) -> None:
        self.folder, self.part_tokens = folder, part_tokens
        self.random = random.Random(seed)
        self.kills: Counter[tuple[str, str]] = Counter()

    def begin(self, arguments: list[Any]) -> Any:
        """A run of a command; what it says goes to a log."""
        return begin([*arguments, "--json", "--threads", 1], self.folder / "log", self.part_tokens)

    def finish(self, process: Any) -> dict[str, Any]:
        """Waits for a run that is to succeed; what it found."""
        process.join()
        out, err = ((self.folder / "log").with_suffix(name).read_text() for name in (".out", ".err"))
        assert process.exitcode == 0, f"expected the command to succeed, found exit code {process.exitcode}:\n{err}"
        found = json.loads(out)
        assert isinstance(found, dict)
        return found

    def measure(self, job: Build | Retrain) -> Path:
        """Runs a job twice without a kill, the second time for its phases; a place with what it makes."""
        for turn in ("whole", "again"):
            place = self.folder / f"{job.name}, {turn}"
            process = self.begin(job.prepare(place))
            job.seconds, then = dict.fromkeys(job.phases, 0.0), time.perf_counter()
            while process.is_alive():
                time.sleep(0.0005)
                now = time.perf_counter()
                job.seconds[job.phase(place)] += now - then
                then = now
            job.parts = self.finish(process)["parts"]
            job.last = generation(place / "store")
            found = contents(place)
            assert job.expected in ({}, found), f"{place}: expected the files of another run, found others"
            job.expected = found
        return place

    def wanted(self, job: Build | Retrain) -> list[str]:
        """Phases for the kills of a life: encoding, some drawn evenly, and perhaps one by the time that they take."""
        swept = {phase for phase in job.phases if job.given is not None and phase.startswith("removing")}
        phases = [phase for phase in job.phases[:-1] if job.seconds[phase] or phase in swept]
        even = self.random.sample(phases, self.random.randint(1, 2))
        weights = [job.seconds[phase] for phase in phases]
        return ["encoding", *even, *self.random.choices(phases, weights, k=self.random.randint(0, 1))]

    def live(self, job: Build | Retrain, number: int, wanted: list[str], leaders: bool = False) -> None:
        """One life: a kill in each wanted phase that a run reaches, then a run to the end.

        leaders: now and then the workers are left to end by themselves.
        """
        place = self.folder / f"{job.name}, {number}"
        arguments = job.prepare(place)
        for phase in [*sorted(wanted, key=job.phases.index), None]:
            before = job.committed(place)
            process = self.begin(arguments)
            if phase is not None and self._reach(job, place, process, phase):
                group = not leaders or self.random.random() < 0.75
                kill(process, group)
                if process.exitcode == -signal.SIGKILL:
                    now = job.phase(place)
                    self.kills[job.name, now] += 1
                    assert job.committed(place) >= before or now in job.phases[-2:], f"{place}: commits are lost"
                    if now == job.phases[-1]:
                        break
                    continue
            found = self.finish(process)["resumed_parts"]
            assert found == before, f"{place}: expected a run to go on from {before} parts, found {found}"
            break
        found = contents(place)
        different = sorted({name for name, _ in found.items() ^ job.expected.items()})
        assert not different, f"{place}: expected the files of an uninterrupted run, found others: {different}"
        shutil.rmtree(place)

    def _reach(self, job: Build | Retrain, place: Path, process: Any, phase: str) -> bool:
        """Waits for an instant of a phase, or of a later one that the run begins with; False if it ends before."""
        at = job.phases.index(phase)
        delay = job.seconds[phase] * self.random.random()
        if at and job.phases.index(job.phase(place)) >= at:  # the run has to start until it does anything
            delay += 0.9 * job.seconds[job.phases[0]]
        while job.phases.index(job.phase(place)) < at:
            if not process.is_alive():
                return False
            time.sleep(0.0005)
        process.join(delay)
        return bool(process.is_alive())

    def histogram(self, jobs: list[Build | Retrain]) -> str:
        """Kills by job and by what was on disk then."""
        lines = [
            f"{job.name:<28} {phase:<26} {self.kills[job.name, phase]:>5}"
            for job in jobs
            for phase in job.phases
            if self.kills[job.name, phase] or job.seconds[phase]
        ]
        return "\n".join([f"{'command':<28} {'on disk':<26} kills", *lines, f"{sum(self.kills.values())} kills"])


def write_texts(folder: Path, documents: int, words: int) -> tuple[Path, Path]:
    """A text, and another one for the store that was there before."""
    text, other = folder / "text", folder / "other"
    for path, numbers in ((text, range(documents)), (other, range(100, 102))):
        path.mkdir()
        for number in numbers:
            (path / f"{number:03}.txt").write_text(sentence(number, words))
    return text, other


def main() -> None:
    """The full form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="of each command, at least")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text, other = write_texts(folder, 16, 20_000)
        campaign = Campaign(folder, options.seed, None)
        train = ["train", text, "--out", folder / "model", "--steps", 2, "--vocab-size", 300, "--d-model", 16]
        campaign.finish(campaign.begin([*train, "--layers", 1, "--heads", 2, "--context", 32, "--batch-tokens", 256]))
        model = ["--model", folder / "model"]
        campaign.finish(campaign.begin(["build", other, *model, "--out", folder / "old" / "store"]))
        build = ["build", text, *model]
        one = Build("build", build)
        retrain = Retrain("build --retrain", ["build"], given=folder / "build, whole" / "store")
        jobs = [
            one,
            Build("build --workers 2", [*build, "--workers", 2]),
            Build("build --overwrite", build, given=folder / "old" / "store"),
            retrain,
            Retrain("build --retrain --workers 2", ["build", "--workers", 2], given=retrain.given),
        ]
        for job in jobs:
            campaign.measure(job)
            assert isinstance(job, Retrain) or job.expected == one.expected
            lives = 0
            while sum(n for (name, _), n in campaign.kills.items() if name == job.name) < options.kills:
                campaign.live(job, lives, campaign.wanted(job), leaders="--workers" in job.command)
                lives += 1
            spent = ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in job.seconds.items() if seconds)
            print(f"{job.name}: {job.parts} parts, {lives} lives; uninterrupted: {spent}", flush=True)
        print(f"\nseed {options.seed}\n{campaign.histogram(jobs)}")


if __name__ == "__main__":
    main()
