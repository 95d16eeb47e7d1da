"""Pieces of a long text: cut where a tokenizer cuts by itself, so that their ids, joined, are those of the whole text.

Whether it does is tried, not guessed from its configuration: normalizer and pre-tokenizer work on texts of all kinds,
whole and cut, and a kind of place counts only where both give the same words every time. A model never joins two words
of a pre-tokenizer, so that its ids are the same then, too.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

PIECE = 1 << 16  # characters encoded at once
LONGEST_PIECE = 1 << 20  # where no place fits, a piece ends here: memory stays bounded
LONGEST_WHOLE = 1 << 23  # bytes of UTF-8 of a text that a tokenizer must have whole: some 0.1 to 0.5 kB a byte

BEFORE_SPACE = re.compile(r"(?<=\S)(?=[ \t\n\r])")

_LETTER = r"[^\W\d_]"
KINDS = (
    BEFORE_SPACE.pattern,
    r"(?<=\w)(?=[ \t\n]\w)",
    rf"(?<={_LETTER})(?= {_LETTER})",
    rf"(?<={_LETTER} )(?={_LETTER})",
    rf"(?<={_LETTER})(?=\n{_LETTER})",
    r"(?<=\n)(?=\w)",
    rf"(?<=\n)(?={_LETTER})",
    rf"(?<={_LETTER})(?=[。、，！？；：])",  # scripts without spaces
)
"""Kinds of places, as patterns of what is around them."""

_FRAGMENTS = (  # characters of all kinds that pre-tokenizers tell apart
    *("a", "ab", "Word", "WORD", "I", "don't", "I'll", "we've", "'s", "x1", "1", "12", "345", "6789", "3.14", "1,000"),
    *(" ", " ", " ", " ", "  ", "    ", "\t", "\n", "\n", "\n\n", "\r\n", " \n", "\n ", "\u00a0", "\u3000", "\u2028"),
    *(".", ",", ";", "!", "?!", "...", "(", ")", "[", "}", '"', "'", "-", "--", "—", "_", "__", "/", "\\", "#", "@"),
    *("ß", "é", "e\u0301", "ǆ", "ﬁ", "İ", "Σας", "дом", "Дом", "漢", "漢字", "かな", "カナ", "한국", "ไทย", "हिन्दी"),
    *("عربى", "עברית", "。", "、", "，", "！", "½", "²", "Ⅷ", "①", "٣", "€", "→", "\u200b", "\u200d", "\ufeff"),
    *("🙂", "👩\u200d👧", "▁", "<s>", "\x07", "\x1c", "\x85", "\x7f", "\ufffd"),
)
_TRIALS = 400


def pieces(
    text: str,
    cut: re.Pattern[str] | None = BEFORE_SPACE,
    length: int = PIECE,
    longest: int = LONGEST_PIECE,
) -> Iterator[str]:
    """Cut ``text`` where ``cut`` matches into pieces of about ``length`` characters; joined they are the text.

    Where nothing matches, or ``cut`` is None, the piece ends after ``longest`` characters, if possible in front of
    white space: there alone the ids can be others than those of the whole text.
    """
    start = 0
    while len(text) - start > length:
        end = min(start + longest, len(text))
        found = None if cut is None else cut.search(text, start + length, end)
        stop = found.start() if found else end
        if found is None and end < len(text):
            space = max(text.rfind(white, start + 1, end + 1) for white in " \n")
            stop = end if space < 0 else space
        yield text[start:stop]
        start = stop
    if start < len(text):
        yield text[start:]


@dataclass(frozen=True)
class Cutting:
    """How a tokenizer takes a long text in pieces.

    places: where it may be cut; None where it is not known to be safe anywhere. rest: the tokenizer of all pieces but
    the first, which puts nothing in front of them.
    """

    places: re.Pattern[str] | None
    rest: Any


def cutting(backend: Any) -> Cutting:
    """Try where a `tokenizers.Tokenizer` cuts whatever is around it."""
    trials = [(text, _words(backend, text)) for text in _trials()]
    added = [t.content for t in backend.get_added_tokens_decoder().values() if not t.special]
    with_added = [(text, _ids(backend, text)) for text in map("ab {0} cd\n{0}\nef{0}gh{0} {0}{0} ij".format, added)]

    def safe(rest: Any, loose: str) -> str:
        return "|".join(
            kind
            for kind in KINDS
            if _is_safe(kind, trials, partial(_words, backend), partial(_words, rest), loose)
            and _is_safe(kind, with_added, partial(_ids, backend), partial(_ids, rest), "")
        )

    if places := safe(backend, ""):
        return Cutting(re.compile(places), backend)
    loose, rest = _loose(backend), _continuing(backend)
    for one in (backend, rest):
        if places := safe(one, loose):
            return Cutting(re.compile(places), one)
    return Cutting(None, rest)


def _is_safe(
    kind: str,
    trials: list[tuple[str, list[Any]]],
    first: Callable[[str], list[Any]],
    rest: Callable[[str], list[Any]],
    loose: str,
) -> bool:
    """Whether work on the parts of a text, cut at every place of a kind, gives what it gives on the whole."""
    places = re.compile(kind)
    for text, whole in trials:
        cuts = [found.start() for found in places.finditer(text)]
        if not cuts:
            continue
        head, *tail = (text[a:b] for a, b in pairwise((0, *cuts, len(text))))
        parts = [first(head), *map(rest, tail)]
        same = [word for part in parts for word in part] == whole or (loose and _joined(parts, loose) == whole)
        if not same:
            return False
    return True


def _joined(parts: list[list[str]], loose: str) -> list[str]:
    """The words of all parts, those joined over a cut that no token of the model can span."""
    words: list[str] = []
    for part in parts:
        for number, word in enumerate(part):
            spans = words and not number and word[:1] in loose and words[-1][-1:] not in loose
            words[-1:] = [words[-1] + word] if spans else [*words[-1:], word]
    return words


def _loose(backend: Any) -> str:
    """Characters that no token of a byte-pair model has behind another one: merges do not reach over their left side.

    Models without a pre-tokenizer (Llama 2, Gemma) merge a whole text as one word; "▁" is such a character there.
    """
    model = json.loads(backend.to_str())["model"]
    odd = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    if model.get("type") != "BPE" or any(model.get(name) for name in odd):
        return ""
    marks = [mark for mark in "▁Ġ" if mark in model["vocab"]]
    inside = {mark for token in model["vocab"] for mark in marks if mark in token.lstrip(mark)}
    return "".join(mark for mark in marks if mark not in inside)


def _continuing(backend: Any) -> Any:
    """The tokenizer without what it puts in front of a text; itself where it puts nothing there."""
    written = backend.to_str()
    data = json.loads(written)
    for part in ("normalizer", "pre_tokenizer"):
        data[part] = _without_prefix(data[part])
    if data == json.loads(written):
        return backend
    rest = type(backend).from_str(json.dumps(data))
    rest.no_truncation()
    rest.no_padding()
    rest.encode_special_tokens = backend.encode_special_tokens
    return rest


def _without_prefix(step: Any) -> Any:
    if step is None:
        return None
    for name in ("normalizers", "pretokenizers"):
        if name in step:
            inner = [_without_prefix(one) for one in step[name]]
            return {**step, name: [one for one in inner if one is not None]}
    if step["type"] == "Prepend":
        return None
    if step["type"] == "Metaspace":
        return {**step, "prepend_scheme": "never"}
    return {**step, "add_prefix_space": False} if step.get("add_prefix_space") else step


def _words(backend: Any, text: str) -> list[Any]:
    """What the model of a tokenizer gets of a text, one word after the other."""
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    if backend.pre_tokenizer is None:
        return [text]
    return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]


def _ids(backend: Any, text: str) -> list[Any]:
    return list(backend.encode(text, add_special_tokens=False).ids)


def _trials() -> Iterator[str]:
    rng = random.Random(0)
    for _ in range(_TRIALS):
        yield "".join(rng.choices(_FRAGMENTS, k=rng.randint(2, 24)))
