"""Scans of codes and what bounds them (roofline.rs)."""

from __future__ import annotations

from typing import Any

import tables


def title(_: dict[str, Any]) -> str:
    """The head of the page."""
    return "Scans of codes and what bounds them"


def sections(record: dict[str, Any]) -> list[str]:
    """The page below its title: the share of the bound, then the rates it comes from."""
    rows = record["rows"]
    out = [
        "How near do the scans of codes come to what bounds them? The bound is the lower of two rates measured on "
        "the same bytes: reading alone, and the table look-ups alone.\n",
        tables.markdown(
            ["code", "working set", "instruction set", "queries at once", "share of the bound", "million codes/s"],
            [[*start(r), r["queries"], f"{100 * r['share']:.0f} %", f"{r['codes'] / 1e6:,.0f}"] for r in rows],
            text=["working set", "instruction set"],
        ),
    ]
    for code in dict.fromkeys(r["code"] for r in rows):
        here = [r for r in rows if r["code"] == code]
        products = any(r["products"] is not None for r in here)
        head = ["working set", "instruction set", "queries at once", "read alone", "look-ups alone"]
        out += [
            f"## {code}: GB/s of blocks\n",
            tables.markdown(
                [*head, *["look-ups and products"] * products, "scan"],
                [
                    [
                        *start(r)[1:],
                        r["queries"],
                        *(f"{r[c]:.1f}" for c in ("read", "lookups")),
                        *[f"{r['products'] or 0:.1f}"] * products,
                        f"{r['scan']:.1f}",
                    ]
                    for r in here
                ],
                text=["instruction set"],
            ),
        ]
    return [
        *out,
        "Blocks of 16 entries with their factors, d = 384, one thread, best of many rounds in turn; results of the "
        "look-ups alone are folded by xor. Several queries at once read the bytes once; with `flat` they share the "
        "look-ups, too, so that the products are left, which have a column of their own, no part of the bound.\n",
    ]


def start(row: dict[str, Any]) -> list[str]:
    """What was scanned, from where, with what."""
    return [row["code"], row["place"], row["isa"]]
