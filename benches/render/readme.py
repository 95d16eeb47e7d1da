"""The README's tables of perplexities, from the records; rows of the demo are kept as they are."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tables

from render.perplexity import KNN, SHUFFLED, entry

TEXTS = {
    "perplexity-wikitext2": "WikiText-2, store of its training text",
    "perplexity-gutenberg": "Gutenberg, an unseen book, store of six others",
    "perplexity-peps": "Python PEPs, store of the training PEPs",
    "perplexity-rust-docs-adapted": "PEPs LM → Rust documentation, never trained on it",
    "perplexity-gutenberg-adapted": "PEPs LM → Gutenberg, never trained on it",
}
HELPS = ["test perplexity", "LM", "+ kNN", "change [95 % interval]"]
SHUFFLED_VALUES = ["test perplexity", "LM", "+ kNN", "shuffled values"]
BESIDE = ["test perplexity", "+ kNN", "+ cache", "+ kNN + cache", "5-gram", "LM + 5-gram", "all together"]


def helps(record: dict[str, Any]) -> list[str]:
    """Does the store help? Cells after the text."""
    lm, knn = (entry(record, name) for name in ("LM", KNN))
    ends = ", ".join(tables.percent(ratio).removesuffix(" %") for ratio in knn["ratio_interval"])
    return [*(f"{row['perplexity']:.1f}" for row in (lm, knn)), f"{tables.percent(knn['ratio'])} [{ends}]"]


def shuffled(record: dict[str, Any]) -> list[str]:
    """Is it the store's meaning that helps? Cells after the text."""
    return [f"{entry(record, name)['perplexity']:.1f}" for name in ("LM", KNN, SHUFFLED)]


def beside(record: dict[str, Any]) -> list[str]:
    """What rivals it, and what adds to it? Cells after the text."""
    systems = [
        (KNN,),
        ("LM + cache",),
        (f"{KNN} + cache",),
        ("5-gram", "domain 5-gram"),
        ("LM + 5-gram", "LM + domain 5-gram"),
        (f"{KNN} + cache + 5-gram", f"{KNN} + cache + domain 5-gram"),
    ]
    return [f"{entry(record, *names)['perplexity']:.1f}" for names in systems]


def measured(records: dict[str, dict[str, Any]]) -> str:
    """When the rows were measured, with which codes and which language models, in a sentence for each day."""
    days: dict[str, list[str]] = {}
    for name, record in records.items():
        codes = "with the default codes" if record["store"]["code"].get("second_bits") else "before second-level codes"
        trained = record["model"]["training"]
        day = f"{record['date'].partition(' ')[0]}, {codes}"
        short = TEXTS[name].partition(",")[0]
        days.setdefault(day, []).append(f"{short} (LM trained on {trained['tokens'] / 1e6:.1f} M tokens)")
    return " ".join(f"Measured {day}: {', '.join(rows)}." for day, rows in days.items()) + "\n"


def with_tables(text: str, folder: Path) -> str:
    """The README with its tables written again, between their marks `<!-- table: NAME -->`."""
    records = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in TEXTS}
    kinds: dict[str, tuple[list[str], Callable[[dict[str, Any]], list[str]]]] = {
        "helps": (HELPS, helps),
        "beside": (BESIDE, beside),
        "shuffled": (SHUFFLED_VALUES, shuffled),
    }
    for name, (head, cells) in kinds.items():
        match = re.search(rf"<!-- table: {name} -->\n(.*?)<!-- end -->", text, re.DOTALL)
        if match is None:
            raise ValueError(f"README.md: expected <!-- table: {name} --> and <!-- end --> after it, found none")
        kept = [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in match[1].splitlines()
            if line.startswith("| demo")
        ]
        rows = [[TEXTS[record], *cells(found)] for record, found in records.items()]
        table = tables.markdown(head, [*rows, *kept])
        if name == "shuffled":
            table += "\n" + measured(records)
        text = text[: match.start(1)] + table + text[match.end(1) :]
    return text
