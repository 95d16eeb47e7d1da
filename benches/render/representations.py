"""Key representations (representations.py)."""

from __future__ import annotations

from typing import Any

import tables

from render.perplexity import FEWEST

LAYERS = {-1: "last", -2: "second last"}


def title(record: dict[str, Any]) -> str:
    """The head of the page."""
    return f"Key representations: {record['corpus']}"


def sections(record: dict[str, Any]) -> list[str]:
    """The page below its title."""
    rows, about = record["rows"], record["model"]
    sure = rows[0]["documents"] >= FEWEST
    head = ["key", "layer", "perplexity", "against the LM", *["from", "to"] * sure, "target found"]
    cells = []
    for r in sorted(rows, key=lambda r: float(r["perplexity"])):
        interval = [tables.percent(bound) for bound in r["ratio_interval"]] if sure else []
        found = f"{100 * r['target_found']:.1f} %"
        start = [r["representation"], LAYERS[r["layer"]], f"{r['perplexity']:.2f}", tables.percent(r["ratio"])]
        cells.append([*start, *interval, found])
    tuned = [
        [r["representation"], LAYERS[r["layer"]], f"{r['lambda']:.2f}", tables.temperature(r["temperature"]), r["k"]]
        for r in rows
    ]
    interval_text = (
        "Intervals: 10,000 paired bootstrap samples of documents."
        if sure
        else "Too few documents for a bootstrap interval."
    )
    best = min(rows, key=lambda r: float(r["perplexity"]))
    return [
        f"Which of the model's vectors makes the best key? {best['representation']} of the {LAYERS[best['layer']]} "
        f"layer here; without a store the perplexity is {record['lm_perplexity']:.2f}.\n",
        tables.markdown(head, cells, text=["layer"]),
        f"*Target found*: the next token is among the values of the neighbors. {interval_text}\n",
        "## Settings\n",
        tables.markdown(["key", "layer", "lambda", "T", "k"], tuned, text=["layer"]),
        f"Model: {about['model']['name']}, {about['parameters'] / 1e6:.1f} M parameters. {record['test_tokens']:,} "
        f"test tokens in {rows[0]['documents']} documents. Store: {record['store_tokens']:,} training tokens, "
        f"float16 keys, {record['search']} search. Lambda, temperature and k of each row tuned on "
        f"{record['tuning_tokens']:,} validation tokens.\n",
    ]
