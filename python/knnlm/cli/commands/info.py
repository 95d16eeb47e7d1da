"""`knnlm info`: what a store holds, how it was made and where its bytes are."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from knnlm.cli.console import Command, facts, print_json, size, table, write_out
from knnlm.cli.options import as_json
from knnlm.store.attributes import attribute_problems
from knnlm.store.new_index import advice
from knnlm.store.opening import open_store
from knnlm.system.counted import counted
from knnlm.system.terminal import printable

if TYPE_CHECKING:
    from knnlm.store.datastore import Datastore


@click.command("info", cls=Command)
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--documents", is_flag=True, help="List the documents instead: name and number of entries.")
@as_json
def command(store: Path, documents: bool, as_json: bool) -> None:
    """What STORE holds, how it was made, and where its bytes are.

    \b
    Examples:
      knnlm info store
      knnlm info store --documents
    """
    with open_store(store) as opened:
        info = opened.info()
        if documents:
            _list(opened, as_json)
            return
    if as_json:
        print_json(info)
        return
    facts(_pairs(info))
    write_out("\n")
    n = max(1, int(info["n"]))
    rows = [[name, size(count), f"{count / n:.2f}"] for name, count in info["sections"].items()]
    rows.append(["all files", size(info["bytes"]), f"{info['bytes_per_entry']:.2f}"])
    table(None, ["section", "bytes", "per entry"], rows)


def _list(store: Datastore, as_json: bool) -> None:
    """One document a line, so that it can be searched and cut; as JSON with ids and metadata."""
    if as_json:
        print_json({"store": store.path, "documents": [asdict(document) for document in store.documents()]})
        return
    for document in store.documents():
        name = "(no name)" if document.name is None else printable(document.name)
        write_out(f"{name}\t{len(document):,}\n")


def _pairs(info: dict[str, Any]) -> dict[str, str]:
    attributes = info.get("attributes") or {}
    problems = attribute_problems(attributes)
    pairs = {
        "store": f"{info['path']}, generation {info['generation']}, format {info['format']}",
        "entries": f"{info['n']:,} in {counted(info['documents'], 'document')}",
        "keys": f"dimension {info['dim']}, {info['metric']}, raw keys kept: {info['keep_keys'] or 'no'}",
        "values": f"{info['value_dtype']}, at most {info['max_value']}" if info["max_value"] else info["value_dtype"],
    }
    if info["deleted_entries"]:
        pairs["deleted"] = (
            f"{counted(info['deleted_entries'], 'entry')} of {counted(info['deleted_documents'], 'document')}, on disk "
            f"until knnlm compact {info['path']}"
        )
    if info["code"]:
        code = info["code"]
        second = f", second codes of {code['second_bits']} bits a dimension" if code["second_bits"] else ""
        pairs["index"] = (
            f"{counted(info['nlist'], 'list')} of {info['shortest_list']:,} to {counted(info['longest_list'], 'entry')}"
            f" ({info['mean_list']:,.0f} on average), "
            f"codes of {counted(code['bytes'], 'byte')} ({code['m']} × {code['bits']} bit){second}, "
            f"nprobe {info['default_nprobe']}"
        )
        pairs["not indexed"] = f"{counted(info['n'] - info['indexed'], 'entry')}, searched exactly"
        pairs["searched"] = f"{info['search_bytes_per_entry']:.1f} bytes per entry"
        rows = info["calibration"] or ()
        reached = ", ".join(f"{row['best_recall']:.3f} for k {row['k']:,}" for row in rows)
        pairs["recall"] = f"up to {reached} (measured against exact search)" if reached else "not measured"
        by_keys = [f"{b:.3f} for k {row['k']:,}" for row in rows if (b := row.get("best_recall_by_keys")) is not None]
        if by_keys:
            pairs["by raw keys"] = f"up to {', '.join(by_keys)} (--rerank keys)"
        if info["drift"] is not None and _has_grown(info):
            pairs["drift"] = f"{100 * info['drift']:+.0f} % quantisation error of what came after the index was learnt"
        if info["retrain_advised"]:
            pairs["outgrown"] = f"{info['retrain_reason']}; {advice(info)}"
    else:
        pairs["index"] = "none: every search scans all keys; knnlm build makes one"
    if problems:
        attributes = {}
        pairs["attributes"] = f"not those that knnlm writes, and not shown: {'; '.join(problems)}"
    if "model" in attributes:
        pairs["model"] = f"{attributes['model'].get('name')} ({attributes['model'].get('fingerprint', '')[:12]}…)"
        pairs["model"] += f", {attributes['model']['dtype']}" if attributes["model"].get("dtype") else ""
        pairs["key"] = (
            f"{attributes.get('representation')} of layer {attributes.get('layer')}, "
            f"window {attributes.get('window')} of the model's {attributes['model'].get('context', '?')}, "
            f"context {attributes.get('context')}"
        )
        if attributes.get("autocast"):
            pairs["key"] += f", {attributes['autocast']}"
        pairs["tokenizer"] = f"{(attributes.get('tokenizer') or {}).get('fingerprint', '')[:12]}…"
    tuned = attributes.get("tuned")
    if tuned:
        names = {"lambda_": "λ", "temperature": "T", "k": "k", "nprobe": "nprobe", "rerank": "rerank", "exact": "exact"}
        used = ", ".join(
            f"{label} {_short(tuned[name])}" for name, label in names.items() if tuned.get(name) is not None
        )
        origin = f"preset {tuned['preset']}" if "preset" in tuned else "tuned"
        pairs["settings"] = f"{used} ({origin})"
        if all(tuned.get(name) is not None for name in ("tokens", "perplexity", "lm_perplexity")):
            pairs["tuned on"] = (
                f"{counted(tuned['tokens'], 'token')}: perplexity {tuned['perplexity']:.2f}, "
                f"the model alone {tuned['lm_perplexity']:.2f}"
            )
    else:
        pairs["settings"] = f"not tuned; T {info['default_temperature'] or 1:.4g} from the store's own distances"
    return pairs


def _has_grown(info: dict[str, Any]) -> bool:
    """Whether there is more than a build in one pass wrote, whose later parts count as added to its first one."""
    built = (info.get("attributes") or {}).get("one_pass") or {}
    return not isinstance(tokens := built.get("tokens"), int) or bool(info["next_id"] > tokens)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
