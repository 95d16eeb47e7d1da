"""Recall against speed beside one FAISS index (recall.py)."""

from __future__ import annotations

from typing import Any

import tables


def title(record: dict[str, Any]) -> str:
    """The head of the page."""
    spread = f", norms spread {record['norm_spread']:g}-fold" if record["norm_spread"] != 1 else ""
    return (
        f"recall@{record['k']} of {record['entries']:,} keys of {record['dim']} dimensions, {record['metric']}{spread}"
    )


def sections(record: dict[str, Any]) -> list[str]:
    """The page below its title."""
    rows = record["rows"]
    theirs = [row for row in rows if row["system"].startswith("FAISS")]
    beside = {row["beside"]: row for row in rows if row.get("beside")}
    per = "CPU second" if record["clock"] == "cpu" else "second"
    out = []
    head = ["system", "nprobe", "recall", "scanned", "queries/s in a batch", "one at a time"]
    if theirs:
        lines = []
        for peer in theirs:
            lines += [line(row) for row in (peer, beside.get(label(peer))) if row]
        out += [
            "How fast is search beside the FAISS index of the published kNN-LM systems, at its recall? Below each "
            "row of FAISS the least nprobe of ours, codes only, that has its recall.\n",
            tables.markdown(head, lines),
        ]
        out += [
            f"No nprobe of knnlm, codes only, reaches the recall of {label(peer)}.\n"
            for peer in theirs
            if label(peer) not in beside
        ]
    ours = [row for row in rows if row not in theirs and not row.get("beside")]
    if theirs:
        out.append("## Recall and speed by nprobe\n")
    else:
        out.append("How much recall is there for how many queries a second?\n")
    out.append(tables.markdown(head, [line(row) for row in ours]))
    if record.get("exact"):
        out += ["## Is exact search exact?\n", record["exact"] + "\n"]
    threads = record["threads"]
    batches = (
        f"{record['queries']} queries in one batch, best of {record['repeats']} runs in turn, and {record['alone']}"
    )
    sizes = f"Search touches {record['bytes_per_entry']:.1f} bytes an entry (codes, factors, ids, centroids)"
    if record.get("faiss_bytes_per_entry"):
        sizes += f", FAISS {record['faiss_bytes_per_entry']:.1f}"
    default = f", {record['default_nprobe']} of them scanned by default" if "default_nprobe" in record else ""
    out.append(
        f"{batches} one at a time; {threads} thread{'s' * (threads > 1)}; queries/s are per {per}. Scanned: share of "
        f"all keys. {sizes}; codes of {record['code_bytes']} bytes"
        + (f" (FAISS {record['faiss_code_bytes']})" if record.get("faiss_code_bytes") else "")
        + f". {record['nlist']:,} lists{default}. {record['made']}\n"
    )
    return out


def label(row: dict[str, Any]) -> str:
    """A system with its setting."""
    return f"{row['system']}, nprobe {row['nprobe']}"


def line(row: dict[str, Any]) -> list[Any]:
    """Cells of a row."""
    scanned = f"{100 * row['scanned']:.2f} %"
    rates = [f"{row[name]:,.0f}" for name in ("batch", "single")]
    return [row["system"], row["nprobe"], f"{row['recall']:.4f}", scanned, *rates]
