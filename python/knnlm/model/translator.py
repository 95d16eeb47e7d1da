"""Translator: an encoder-decoder of transformers with its tokenizer; a store remembers the tokens that it writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from knnlm.model.fingerprint import fingerprint_of
from knnlm.model.from_hub import asked, asked_for_weights, to_dtype
from knnlm.model.hub_name import check_hub_name
from knnlm.model.load import pick_device
from knnlm.model.modules import config_of, device_of, token_limit, unwrapped
from knnlm.model.suitable import UNKNOWN_CONTEXT, context_of
from knnlm.system.extras import module
from knnlm.text.tokenizer_probe import tokenizer_fingerprint

IGNORED = -100
"""Label of a position that is no token of the target, as transformers has it."""


class TargetTokenizer:
    """A tokenizer of transformers as the rest of the package knows one, for the language that is written."""

    def __init__(self, original: Any, start: int) -> None:
        """Start: the id in front of what the decoder writes."""
        self.original, self.bos_id = original, start

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the vocabulary and of what becomes of fixed texts."""
        return tokenizer_fingerprint(self.vocabulary(), self.encode)

    @property
    def vocab_size(self) -> int:
        """Largest id + 1."""
        return max(self.vocabulary().values()) + 1

    def vocabulary(self) -> dict[str, int]:
        """Token to id."""
        return dict(self.original.get_vocab())

    def encode(self, text: str) -> list[int]:
        """Ids of a text to be written, as the decoder is taught it."""
        return [int(id) for id in self.original(text_target=text)["input_ids"]]

    def decode(self, ids: Sequence[int]) -> str:
        """Their text without special tokens."""
        return str(self.original.decode([int(id) for id in ids], skip_special_tokens=True)).strip()

    def token_text(self, id: int) -> str:
        """The text of one token."""
        return str(self.original.decode([int(id)]))


@dataclass(frozen=True)
class Translator:
    """An encoder-decoder with what is needed to use it; made by `load_translator` or `as_translator`."""

    model: nn.Module  # evaluation mode
    tokenizer: TargetTokenizer
    context: int  # longest text in tokens, on either side
    name: str
    source: str | None = None  # folder or name that it can be loaded from again
    revision: str | None = None
    probe: None = None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights, see `fingerprint_of`."""
        return fingerprint_of(self.model)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return device_of(self.model)

    @property
    def end(self) -> int | None:
        """The id that ends a text."""
        end = self.tokenizer.original.eos_token_id
        return None if end is None else int(end)

    @property
    def pad(self) -> int:
        """The id that fills a batch up."""
        pad = self.tokenizer.original.pad_token_id
        return int(pad if pad is not None else self.end or 0)

    def read(self, sources: Sequence[str]) -> list[list[int]]:
        """Ids of texts to be translated, as the tokenizer makes them for the encoder."""
        return [[int(id) for id in row] for row in self.tokenizer.original(list(sources))["input_ids"]]

    def written(self, targets: Sequence[str]) -> list[list[int]]:
        """Ids of translations with their end of sentence, as the decoder is taught them."""
        rows = [[int(id) for id in row] for row in self.tokenizer.original(text_target=list(targets))["input_ids"]]
        return [row if self.end is None or self.end in row else [*row, self.end] for row in rows]

    def batch(self, rows: Sequence[Sequence[int]], fill: int | None = None) -> Tensor:
        """Rows of ids filled up on the right, (B, L) int64."""
        longest, fill = max(map(len, rows)), self.pad if fill is None else fill
        return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows], device=self.device)


def load_translator(
    name: str | Path,
    device: Any = None,
    dtype: Any = None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    source_lang: str | None = None,
    target_lang: str | None = None,
    **model_kwargs: Any,
) -> Translator:
    """Load an encoder-decoder of transformers from a folder or by its hub name; weights from safetensors only.

    source_lang, target_lang: codes of a tokenizer of many languages (mBART, M2M100, NLLB).

    Raises:
        FileNotFoundError: no such folder. ImportError: transformers is missing.
        ValueError: a model that is no encoder-decoder, or languages that its tokenizer does not know.
    """
    folder = Path(name)
    if not folder.exists():
        check_hub_name(name)
    transformers = module("transformers", f"a model for translation ({name})")
    shared = {"revision": revision, "trust_remote_code": trust_remote_code}
    shared = {key: value for key, value in shared.items() if value is not None}
    config = asked(str(name), transformers.AutoConfig.from_pretrained, **shared)
    check_encoder_decoder(config, str(name))
    tokenizer = asked(str(name), transformers.AutoTokenizer.from_pretrained, **shared)
    kind = transformers.AutoModelForSeq2SeqLM
    model = asked_for_weights(str(name), kind, to_dtype(dtype), **shared, **model_kwargs)
    model = model if "device_map" in model_kwargs else model.to(pick_device(device))
    found = as_translator(model, tokenizer, source_lang=source_lang, target_lang=target_lang)
    own = revision if revision is not None and not folder.is_dir() else None
    return Translator(found.model, found.tokenizer, found.context, str(name).rstrip("/").split("/")[-1], str(name), own)


def as_translator(
    model: Any, tokenizer: Any = None, *, source_lang: str | None = None, target_lang: str | None = None
) -> Translator:
    """A module with its tokenizer as `load_translator` gives it; what is loaded already stays as it is.

    Raises TypeError without a tokenizer, ValueError for a model that is no encoder-decoder.
    """
    if isinstance(model, Translator):
        return model
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an encoder-decoder of transformers, found a {type(model).__name__}")
    if tokenizer is None or not callable(tokenizer):
        raise TypeError(f"a {type(model).__name__} needs its tokenizer of transformers: tokenizer=…")
    inner: Any = unwrapped(model)
    config: Any = config_of(inner)
    name = getattr(config, "_name_or_path", "") or type(inner).__name__
    check_encoder_decoder(config, name)
    for option, language in (("src_lang", source_lang), ("tgt_lang", target_lang)):
        if language is not None:
            _set_language(tokenizer, option, language, name)
    start = getattr(config, "decoder_start_token_id", None)
    start = getattr(getattr(inner, "generation_config", None), "decoder_start_token_id", start)
    words = TargetTokenizer(tokenizer, int(start or 0))
    limit = token_limit(inner)
    if limit is not None and len(tokenizer.get_vocab()) > limit + len(getattr(tokenizer, "added_tokens_encoder", ())):
        raise ValueError(
            f"{name}: expected a tokenizer of at most {limit:,} ids, found {words.vocab_size:,}: model and tokenizer "
            "do not belong together"
        )
    context = min(context_of(config), getattr(config, "max_position_embeddings", None) or UNKNOWN_CONTEXT)
    source = getattr(config, "_name_or_path", None) or None
    return Translator(inner.eval(), words, context, name, source)


def check_encoder_decoder(config: Any, where: str) -> None:
    """Raise ValueError for a configuration of another kind of model."""
    if not getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{where}: expected an encoder-decoder, as translation needs one, found a {type(config).__name__} of a "
            "decoder or encoder alone: with a language model use KNNLM (in commands knnlm build)"
        )


def _set_language(tokenizer: Any, option: str, language: str, where: str) -> None:
    if not hasattr(tokenizer, option):
        raise ValueError(f"{where}: expected no language for a tokenizer of one pair, found {language!r}: leave it out")
    known = tokenizer.get_vocab()
    if language not in known and f"__{language}__" not in known:
        raise ValueError(f"{where}: expected a language code that its tokenizer knows, found {language!r}")
    setattr(tokenizer, option, language)
