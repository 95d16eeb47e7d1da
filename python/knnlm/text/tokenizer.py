r"""Text to token ids and back: byte-level BPE, white-space words, or any Hugging Face `tokenizer.json`.

Word level is the protocol of WikiText: split at white space, every "\n" is the token ``<eos>``, whatever is not in the
vocabulary is ``<unk>``; ids are in order of frequency. Byte-level BPE loses nothing. Long texts are encoded in pieces,
cut where the pre-tokenizer splits anyway (`pieces.py`), so the ids are those of the whole text. The text of a document
is data: a special token written in it is encoded as the characters that it is. Next: `keys.py` feeds the ids to the
model.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from knnlm.system.extras import explained
from knnlm.system.own_files import write_text
from knnlm.text.pieces import LONGEST_WHOLE, PIECE, Cutting, cutting, pieces
from knnlm.text.tokenizer_probe import tokenizer_fingerprint

try:
    import tokenizers
except ImportError as error:
    raise explained(error, "text for a language model") from error

Ids = npt.NDArray[np.uint32]

FILE_NAME = "tokenizer.json"
WORDS_FORMAT = "knnlm-words-1"
AT_ONCE = 1 << 22  # bytes of UTF-8 encoded at once, in parallel; a byte takes some 0.1 kB meanwhile
END_OF_TEXT = (
    "<|endoftext|>",
    "<eos>",
    "</s>",
    "<|end_of_text|>",
    "<s>",
    "<|begin_of_text|>",
    "<bos>",
    "[SEP]",
    "[EOS]",
)
_WORD = re.compile(r"\n|[^\S\n]*(\S+)")


def count_words(text: str) -> int:
    r"""Number of word-level tokens: white-space words, and one end mark per ``\n``.

    Word-level perplexity of any model is exp(total negative log-likelihood / this number), so that sub-word models and
    word models are compared on the same count (WikiText-2 test: 245,569).
    """
    return len(text.split()) + text.count("\n")


class Tokenizer(ABC):
    """Text to ids and back. Make one with `train_bpe`, `train_words` or `load`."""

    bos_id: int
    """Id fed to the model in front of every document."""

    @classmethod
    def train_bpe(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Byte-level BPE (Radford et al. 2019) with ``<|endoftext|>`` as id 0."""
        if vocab_size < 257:
            raise ValueError(f"byte-level BPE needs 256 bytes and one end mark, found vocab_size {vocab_size}")
        backend = tokenizers.Tokenizer(tokenizers.models.BPE())
        backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator((piece for text in texts for piece in pieces(text)), trainer)
        return BackendTokenizer(backend)

    @classmethod
    def train_words(cls, texts: Iterable[str], vocab_size: int | None = None, min_count: int = 1) -> Tokenizer:
        """White-space words, most frequent first; ``<eos>`` and ``<unk>`` are always there."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(text.split())
            counts["<eos>"] += text.count("\n")
        counts.setdefault("<unk>", 0)
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        words = [word for word in ranked if counts[word] >= min_count or word in ("<eos>", "<unk>")]
        if vocab_size is not None and len(words) > vocab_size:
            if vocab_size < 2:
                raise ValueError(f"a word vocabulary holds <eos> and <unk> at least, found vocab_size {vocab_size}")
            rest = iter(word for word in words if word not in ("<eos>", "<unk>"))
            kept = {"<eos>", "<unk>", *islice(rest, vocab_size - 2)}
            words = [word for word in words if word in kept]
        return WordTokenizer(words)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a file written by `save`, any Hugging Face ``tokenizer.json``, or a folder that holds one of them."""
        path = Path(path)
        file = path / FILE_NAME if path.is_dir() else path
        if not file.is_file():
            raise FileNotFoundError(f"expected a tokenizer at {file}, found nothing; give a {FILE_NAME} or its folder")
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"expected JSON in {file}, found: {error}") from error
        if not isinstance(data, dict):
            raise ValueError(f"expected a JSON object in {file}, found {type(data).__name__}")
        if "format" in data and str(data["format"]).startswith("knnlm-"):
            words = data.get("words")
            if (
                data["format"] != WORDS_FORMAT
                or not isinstance(words, list)
                or not all(isinstance(w, str) for w in words)
            ):
                raise ValueError(
                    f"expected format {WORDS_FORMAT} with a list of words in {file}, found {data['format']}"
                )
            return WordTokenizer(words)
        try:
            return BackendTokenizer(tokenizers.Tokenizer.from_str(json.dumps(data)))
        except Exception as error:  # the library raises bare Exception on a bad file
            raise ValueError(f"expected a Hugging Face tokenizer in {file}, found: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write one JSON file; a folder gets a ``tokenizer.json``."""
        path = Path(path)
        write_text(path / FILE_NAME if path.is_dir() else path, self.to_json())

    @property
    def fingerprint(self) -> str:
        """SHA-256, hexadecimal, of vocabulary and ids of a fixed text (`tokenizer_probe.py`): equal for equal ids."""
        return tokenizer_fingerprint(self.vocabulary(), self.encode)

    def encode(self, text: str) -> Ids:
        """Ids of ``text``, ``(L,)`` uint32, without special tokens."""
        return self.encode_with_offsets(text)[0]

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of ids, v."""

    @abstractmethod
    def vocabulary(self) -> dict[str, int]:
        """Every token with its id, added tokens included."""

    @abstractmethod
    def to_json(self) -> str:
        """The tokenizer as the text of its file."""

    @abstractmethod
    def encode_with_offsets(self, text: str) -> tuple[Ids, npt.NDArray[np.int64]]:
        """Ids ``(L,)`` uint32 and the characters that each covers, ``(L, 2)`` int64, half open."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids``."""

    @abstractmethod
    def token_text(self, id: int) -> str:
        r"""One token for a table: printable, with ``\n`` and the like escaped."""


class WordTokenizer(Tokenizer):
    """White-space words; see the module."""

    def __init__(self, words: list[str]) -> None:
        self._words = words
        self._ids = {word: i for i, word in enumerate(words)}
        if len(self._ids) != len(words) or "<eos>" not in self._ids or "<unk>" not in self._ids:
            raise ValueError("expected different words, <eos> and <unk> among them; the tokenizer file is damaged")
        self.bos_id = self._ids["<eos>"]
        self.unk_id = self._ids["<unk>"]

    @property
    def vocab_size(self) -> int:
        """Number of words, ``<eos>`` and ``<unk>`` included."""
        return len(self._words)

    def vocabulary(self) -> dict[str, int]:
        """Every word with its id."""
        return dict(self._ids)

    def to_json(self) -> str:
        """Format mark and the words in order of id."""
        return json.dumps({"format": WORDS_FORMAT, "words": self._words}, ensure_ascii=False, indent=0)

    @cached_property
    def fingerprint(self) -> str:
        """As of every tokenizer, computed once."""
        return super().fingerprint

    def encode(self, text: str) -> Ids:
        """Ids of ``text``, ``(L,)`` uint32."""
        get, unk, eos = self._ids.get, self.unk_id, self.bos_id
        parts = []
        for piece in pieces(text, longest=len(text)):
            lines = piece.split("\n")
            ids = [get(word, unk) for word in lines[0].split()]
            for line in lines[1:]:
                ids.append(eos)
                ids.extend([get(word, unk) for word in line.split()])
            parts.append(np.array(ids, dtype=np.uint32))
        return np.concatenate(parts) if parts else np.empty(0, np.uint32)

    def encode_with_offsets(self, text: str) -> tuple[Ids, npt.NDArray[np.int64]]:
        """Ids and offsets; the offsets of a word leave out the white space before it."""
        ids, offsets = [], []
        for match in _WORD.finditer(text):
            group = 1 if match.group(1) else 0
            ids.append(self._ids.get(match.group(1), self.unk_id) if group else self.bos_id)
            offsets.append(match.span(group))
        return np.array(ids, dtype=np.uint32), np.array(offsets, dtype=np.int64).reshape(-1, 2)

    def decode(self, ids: Iterable[int]) -> str:
        r"""Words joined by single spaces, ``<eos>`` as ``\n``: the text up to white space inside a line."""
        lines: list[list[str]] = [[]]
        for i in ids:
            if i == self.bos_id:
                lines.append([])
            else:
                lines[-1].append(self._words[i])
        return "\n".join(" ".join(line) for line in lines)

    def token_text(self, id: int) -> str:
        r"""The word; ``<eos>`` as ``\n``."""
        return "\\n" if id == self.bos_id else self._words[id]


class BackendTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library.

    original: what it was made of, if that was a tokenizer of transformers; it has the chat template, too.
    """

    original: Any = None

    def __init__(self, backend: tokenizers.Tokenizer, bos_id: int | None = None) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise ValueError("expected a tokenizer with a vocabulary, found an empty one")
        self._vocab_size = max(vocabulary.values()) + 1
        if bos_id is None:
            bos_id = next((vocabulary[name] for name in END_OF_TEXT if name in vocabulary), None)
        if bos_id is None:
            raise ValueError(
                f"expected one of {', '.join(END_OF_TEXT)} in the vocabulary to feed in front of a document, found none"
            )
        self.bos_id = bos_id
        backend.encode_special_tokens = True

    @property
    def vocab_size(self) -> int:
        """Largest id + 1, added tokens included."""
        return self._vocab_size

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """The tokenizer of the library."""
        return self._backend

    @property
    def added_ids(self) -> set[int]:
        """Ids of the tokens that were added to the vocabulary, special ones among them."""
        return set(self._backend.get_added_tokens_decoder())

    def vocabulary(self) -> dict[str, int]:
        """Every token with its id, added tokens included."""
        return dict(self._backend.get_vocab(with_added_tokens=True))

    def to_json(self) -> str:
        """The `tokenizer.json` of the library."""
        return self._backend.to_str()

    @cached_property
    def fingerprint(self) -> str:
        """As of every tokenizer, computed once."""
        return super().fingerprint

    @cached_property
    def _cutting(self) -> Cutting:
        return cutting(self._backend)

    def _encodings(self, text: str, *, fast: bool) -> Iterator[tuple[str, Any]]:
        backend = self._backend
        for batch in _batches(self._pieces(text)):
            encode = backend.encode_batch_fast if fast else backend.encode_batch
            yield from zip(batch, encode(batch, add_special_tokens=False), strict=True)
            if len(text) > PIECE:
                backend = self._cutting.rest

    def _pieces(self, text: str) -> Iterator[str]:
        if len(text) <= PIECE:
            return iter([text] if text else [])
        if self._cutting.places is not None:
            return pieces(text, self._cutting.places, PIECE)
        most = LONGEST_WHOLE * len(text) // len(text.encode())
        return pieces(text, None, most, most)

    def encode(self, text: str) -> Ids:
        """Ids of ``text``, ``(L,)`` uint32; pieces of a long text are encoded in parallel."""
        parts = [np.array(e.ids, dtype=np.uint32) for _, e in self._encodings(text, fast=True)]
        return np.concatenate(parts) if parts else np.empty(0, np.uint32)

    def encode_with_offsets(self, text: str) -> tuple[Ids, npt.NDArray[np.int64]]:
        """Ids and offsets; tokens that share the bytes of one character share its offsets."""
        ids, offsets, start = [], [], 0
        for piece, encoding in self._encodings(text, fast=False):
            ids.append(np.array(encoding.ids, dtype=np.uint32))
            offsets.append(np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) + start)
            start += len(piece)
        if not ids:
            return np.empty(0, np.uint32), np.empty((0, 2), np.int64)
        return np.concatenate(ids), np.concatenate(offsets)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids``, special tokens included."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def token_text(self, id: int) -> str:
        r"""The token's text with control characters escaped; bytes that are no whole character as ``<0xE2>``."""
        text = self._backend.decode([int(id)], skip_special_tokens=False)
        raw = self._backend.id_to_token(int(id)) or ""
        if raw.startswith("▁") and not text.startswith(" "):
            text = " " + text  # SentencePiece decoders drop the first space of a text
        if "\ufffd" in text:
            text = "".join(f"<0x{_BYTE_OF[c]:02X}>" if c in _BYTE_OF else c for c in raw)
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _batches(parts: Iterable[str]) -> Iterator[list[str]]:
    """Parts in lists of at most `AT_ONCE` bytes or one part, the first alone, which tokenizers may treat otherwise."""
    batch: list[str] = []
    size = AT_ONCE
    for part in parts:
        own = len(part.encode())
        if batch and size + own > AT_ONCE:
            yield batch
            batch, size = [], 0
        batch.append(part)
        size += own
    if batch:
        yield batch


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level BPE writes for bytes (Radford et al. 2019), inverted."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in shown}
    hidden = (byte for byte in range(256) if byte not in shown)
    return table | {chr(256 + i): byte for i, byte in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()
