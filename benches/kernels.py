"""How near do the scans of codes come to what bounds them? Runs roofline.rs and writes its record.

python benches/kernels.py
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import render.kernels as render
import tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=tables.ROOT / "benches" / "record")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        subprocess.run(["cargo", "bench", "--bench", "roofline", "--", str(file)], cwd=tables.ROOT, check=True)
        record = tables.header() | {"rows": json.loads(file.read_text(encoding="utf-8"))}
    print(tables.write(a.out, "kernels", render.title(record), record, render.sections(record)).read_text())


if __name__ == "__main__":
    main()
