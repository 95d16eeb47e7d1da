"""Dated records of a benchmark: machine, commit and command beside the figures, as JSON and as a Markdown table."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MOST_COLUMNS = 7
NUMBER = r"[+−-]?\d[\d,]*(\.\d+)?(e[+-]?\d+)?"
ONE = re.compile(rf"{NUMBER}( ?(%|×|µs|ms|s|kB|MB|GB))?( \[{NUMBER}, {NUMBER}\])?").fullmatch
SIDE_BY_SIDE = re.compile(r"\d\s*[/;]\s*[+−-]?\.?\d|\d( ?%)? to [+−-]?\d|\d.*\([+−-]?\.?\d")


def machine() -> dict[str, Any]:
    """CPU model, threads, vector instruction sets and load, as far as the system tells."""
    model, flags = platform.processor() or platform.machine(), set()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                model = value.strip()
            elif name.strip() in ("flags", "Features"):
                flags = set(value.split())
                break
    known = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "asimd")
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": model,
        "threads": threads,
        "instruction_sets": [flag for flag in known if flag in flags],
        "load_average": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }


def commit() -> str:
    """Short hash of the checked-out commit, with a + when tracked files differ from it."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True)
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True)
    except OSError:
        return "unknown"
    return (head.stdout.strip() or "unknown") + ("+" if dirty.stdout.strip() else "")


def header() -> dict[str, Any]:
    """What every record says about how it was made."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "machine": machine(),
        "command": shlex.join(["python", *relative([str(Path(sys.argv[0]).resolve()), *sys.argv[1:]])]),
    }


def relative(arguments: Sequence[str]) -> list[str]:
    """Arguments without the folders of this machine: repository paths from its root, others by their last two."""
    out = []
    for argument in arguments:
        option, mark, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        if os.path.isabs(value):
            path = Path(value)
            value = str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else Path(*path.parts[-2:]))
        out.append(option + mark + value)
    return out


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]], text: Collection[str] = ()) -> str:
    """A Markdown table that keeps the rules of `faults`.

    Args:
        columns: heads; the first one holds text, and so do those of `text`, on the left; all others hold one number a
            cell, on the right.
        rows: cells; None is an empty one.
        text: heads of the other columns that hold text.

    Raises:
        ValueError: a table that nobody can read, with what is wrong with it.
    """
    marks = ["---" if i == 0 or name in text else "---:" for i, name in enumerate(columns)]
    lines = ["| " + " | ".join(columns) + " |", "|" + "|".join(marks) + "|"]
    lines += ["| " + " | ".join("" if cell is None else str(cell) for cell in row) + " |" for row in rows]
    table = "\n".join(lines) + "\n"
    if wrong := faults(table):
        raise ValueError("expected a table that a person reads, found " + "; ".join(wrong))
    return table


def faults(page: str) -> list[str]:
    """What makes the tables of a Markdown page hard to read: too many columns, more than one number in a cell.

    A column that is aligned to the right holds numbers: one a cell, perhaps with unit and interval (`5 % [3, 7]`), or a
    word. A cell of text may name things that have digits in them (`nprobe 32, k_factor 2`), but holds no figures
    side by side: `1 / 2`, `3 to 4`, `5 (6)`.
    """
    found: list[str] = []
    marks: list[str] = []
    lines = page.splitlines()
    for number, line in enumerate(lines, 1):
        if not line.startswith("|"):
            marks = []
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not marks:  # the head: what stands under it says how the columns are aligned
            below = lines[number] if number < len(lines) else ""
            marks = [mark.strip() for mark in below.strip().strip("|").split("|")]
            if len(cells) > MOST_COLUMNS:
                found.append(f"line {number}: {len(cells)} columns, expected {MOST_COLUMNS} at most")
            continue
        if set(line) <= set("|-: "):
            continue
        if len(cells) != len(marks):
            found.append(f"line {number}: {len(cells)} cells under {len(marks)} heads")
        for cell, mark in zip(cells, marks, strict=False):
            if SIDE_BY_SIDE.search(cell) or (mark.endswith(":") and any(map(str.isdigit, cell)) and not ONE(cell)):
                found.append(f"line {number}: more than one number in {cell!r}")
    return found


def percent(ratio: float, digits: int = 1) -> str:
    """A ratio as its change in percent, with its sign: .936 to "−6.4 %"."""
    return f"{100 * (ratio - 1):+.{digits}f} %".replace("-", "−")


def temperature(value: float) -> str:
    """Three digits that count, never an exponent."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


def page(title: str, record: dict[str, Any], sections: Sequence[str]) -> str:
    """A record as a person reads it: what was found first, how it was measured at the end."""
    m = record["machine"]
    sets = f" ({', '.join(m['instruction_sets'])})" if m["instruction_sets"] else ""
    threads = f"{m['threads']} thread{'s' * (m['threads'] != 1)}"
    facts = (
        "## How it was measured\n\n"
        f"```\n{record['command']}\n```\n\n"
        f"{record['date']}, commit {record['commit']}, {m['cpu']}{sets}, {threads}, load average "
        f"{m['load_average']} at the end.\n"
    )
    return "\n".join([f"# {title}\n", *sections, facts])


def write(folder: Path, name: str, title: str, record: dict[str, Any], sections: Sequence[str]) -> Path:
    """Writes NAME.json with everything and NAME.md with the sections; returns the path of the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    path = folder / f"{name}.md"
    path.write_text(page(title, record, sections))
    return path
