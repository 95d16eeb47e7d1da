"""Dated records of a benchmark: machine, commit and command beside the figures, as JSON and as a Markdown table."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


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


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; the first column is text, the others are numbers and stand on the right."""
    lines = ["| " + " | ".join(columns) + " |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    lines += ["| " + " | ".join("" if cell is None else str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def write(folder: Path, name: str, title: str, record: dict[str, Any], sections: Sequence[str]) -> Path:
    """Writes NAME.json with everything and NAME.md with the sections; returns the path of the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    m = record["machine"]
    facts = (
        f"{record['date']}, commit {record['commit']}, {m['cpu']}, {m['threads']} threads "
        f"({', '.join(m['instruction_sets'])}), load average {m['load_average']} at the end.\n\n"
        f"```\n{record['command']}\n```\n"
    )
    path = folder / f"{name}.md"
    path.write_text("\n".join([f"# {title}\n", facts, *sections]))
    return path
