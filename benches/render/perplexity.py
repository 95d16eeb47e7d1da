"""Perplexity of all systems on one corpus (perplexity.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tables

FEWEST = 5  # documents; with fewer a bootstrap over documents says nothing
KNN, SHUFFLED = "LM + kNN (quantised)", "LM + kNN, values shuffled"
NAMES = {"wikitext2": "WikiText-2", "peps": "Python PEPs", "gutenberg": "Gutenberg", "rust-docs": "Rust documentation"}


def kind(record: dict[str, Any]) -> str:
    """The corpus, as part of a file's name."""
    return f"{record['corpus']}-adapted" if record["adapt"] else str(record["corpus"])


def title(record: dict[str, Any]) -> str:
    """The head of the page."""
    name = NAMES.get(record["corpus"], record["corpus"])
    model = model_name(record)
    return f"Perplexity: {model} LM on {name}" if record["adapt"] else f"Perplexity: {name}"


def model_name(record: dict[str, Any]) -> str:
    """The text that the model was trained on, as far as its name tells."""
    name = str(record["model"]["model"].get("name", "the"))
    return {"peps": "PEPs"}.get(name, NAMES.get(name, name))


def entry(record: dict[str, Any], *systems: str) -> dict[str, Any]:
    """The row of the first of these systems that there is."""
    rows = {row["system"]: row for row in record["test"]}
    return next(rows[name] for name in systems if name in rows)


def sections(record: dict[str, Any]) -> list[str]:
    """The page below its title."""
    test = record["test"]
    found = entry(record, KNN)
    where = "of text that the LM was not trained on" if record["adapt"] else "of unseen text of the LM's own kind"
    low, high = (tables.percent(bound) for bound in found["ratio_interval"])
    sure = f" (95 % interval {low} to {high})" if found["documents"] >= FEWEST else ""
    out = [
        f"How much lower is the perplexity {where} with a datastore? {test[0]['perplexity']:.1f} without, "
        f"{found['perplexity']:.1f} with: {tables.percent(found['ratio'])}{sure}.\n",
        table(test),
        f"All {found['tokens']:,} test tokens in {found['documents']} documents. *Shuffled* is the same store with its "
        "values in a random order: what remains of it without its meaning.\n",
    ]
    if "exact" in record:
        first = record["exact"][0]
        out += [
            "## What quantised search costs: exact search beside it\n",
            table(record["exact"]),
            f"The first {first['tokens']:,} of those tokens, {first['documents']} documents; all rows tuned on the "
            "first documents of the validation text.\n",
        ]
    return [*out, "## Settings\n", *settings(test), set_up(record)]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Perplexities, and intervals where there are documents enough."""
    sure = rows[0]["documents"] >= FEWEST
    head = ["system", "perplexity", "per word", "against the LM", *["from", "to"] * sure, "tokens/s"]
    lines = []
    for row in rows:
        base = row is rows[0]
        change = "" if base else tables.percent(row["ratio"])
        interval = ["" if base else tables.percent(bound) for bound in row["ratio_interval"]] if sure else []
        speed = f"{row['tokens_per_second']:,.0f}"
        lines.append(
            [row["system"], f"{row['perplexity']:,.2f}", f"{row['word_perplexity']:,.2f}", change, *interval, speed]
        )
    return tables.markdown(head, lines)


def settings(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Weights of the mixtures; lambda, temperature and k; the LM that was trained on."""
    weights = {row["system"]: row["settings"]["weights"] for row in rows if "weights" in row["settings"]}
    parts = list(dict.fromkeys(part for found in weights.values() for part in found))
    out = [
        tables.markdown(
            ["weights of", *parts],
            [[name, *(number(w[p]) if p in w else "" for p in parts)] for name, w in weights.items()],
        )
    ]
    tuned = [row for row in rows if "lambda" in row["settings"]]
    lines = []
    for row in tuned:
        s = row["settings"]
        found = f"{100 * s['found']:.0f} %"
        lines.append([row["system"], number(s["lambda"]), tables.temperature(s["T"]), s["k"], found])
    out.append(tables.markdown(["tuned", "lambda", "T", "k", "targets among the neighbors"], lines))
    for row in rows:
        if row["system"] == "LM trained on":
            s = row["settings"]
            spent = f"{s['seconds']:.0f} seconds, what dump and build took"
            out.append(f"The LM was trained on for {spent}, at a rate of {s['rate']:g}.\n")
    return out


def number(value: float) -> str:
    """Two digits that count; more than nothing is not shown as nothing."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def set_up(record: dict[str, Any]) -> str:
    """What the numbers hold for, in prose."""
    store, trained = record["store"], record["model"].get("training")
    steps = f"{trained['steps']:,} steps of {trained['config'].get('optimizer', 'adamw')}, " if trained else ""
    tokens = f"{trained['tokens'] / 1e6:.2g} million tokens; " if trained else ""
    notes = f" {record['note']}" if "note" in record else ""
    return (
        f"Model: {record['model']['text']}; {steps}{tokens}"
        f"{100 * record['overlap_13gram']:.2f} % of the test tokens lie in a 13-gram of the store.\n\n"
        f"Store: {store['n']:,} entries, {store['search_bytes_per_entry']:.1f} bytes per entry read by quantised "
        f"search, {store['bytes_per_entry']:.1f} on disk with the raw float16 keys; dump {store['dump_seconds']:.0f} "
        f"s, build {store['build_seconds']:.0f} s; {store['nlist']} lists, {store['default_nprobe']} scanned by "
        "default.\n\n"
        f"Everything was chosen on {record['tuning_tokens']:,} validation tokens; cache: {cache_text(record)}. "
        "Intervals: change of the perplexity against the LM of the same table, 10,000 paired bootstrap samples of "
        "documents. Tokens/s: model, search and mixing one after the other; an n-gram alone needs no model. Weights of "
        f"mixtures are found by EM.{notes}\n"
    )


def cache_text(record: dict[str, Any]) -> str:
    """The chosen cache."""
    chosen = entry(record, "LM + cache")["settings"]["cache"]
    return f"{chosen['metric']}, the last {chosen['size']} pairs, theta {chosen['theta']:.3g}"
