"""Counted: a number with its noun, in the singular where it is one."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """`1 document`, `2,000 documents`, `0 entries`; of several words the last is the noun."""
    return f"{count:,} {noun if count == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """The regular plural: document, documents; entry, entries; match, matches."""
    if noun.endswith("y") and noun[-2:-1] not in tuple("aeiou"):
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"
