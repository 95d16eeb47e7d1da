"""Suitable: whether a model and a tokenizer are of the kind that the kNN-LM is made for, asked before they are used.

What is not would give numbers all the same: an encoder-decoder loads without its encoder, an encoder reads the words
that it is to predict, weights that are missing are random, a tokenizer without its files gives no token at all.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from knnlm.model.modules import device_of, token_limit
from knnlm.model.transformer import LONGEST
from knnlm.system.counted import counted
from knnlm.text.tokenizer import BackendTokenizer, Tokenizer
from knnlm.text.tokenizer_probe import PROBE

UNKNOWN_CONTEXT = 2048  # for a model that states no longest sequence
MOST_LAYERS = 10_000
CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")
LAYER_NAMES = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
SEPARATORS = ("<|endoftext|>", "<|end_of_text|>")
"""Tokens that stand between documents in training, where a tokenizer names no beginning of a text."""


def text_config(config: Any) -> Any:
    """The part of a configuration that is about text."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def context_of(config: Any) -> int:
    """Longest input that a configuration states, in tokens. Raises ValueError for one that no model can read."""
    if isinstance(context := getattr(config, "context", None), int):
        return context
    config = text_config(config)
    for name in CONTEXT_NAMES:
        if isinstance(value := getattr(config, name, None), int) and value > 0:
            if value > LONGEST:
                raise ValueError(f"{name}: expected at most {LONGEST:,} tokens of context, found {value:,}")
            return value
    return UNKNOWN_CONTEXT


def layers_of(config: Any) -> int:
    """Layers that a configuration states, 0 where it does not."""
    config = text_config(config)
    return max((v for name in LAYER_NAMES if isinstance(v := getattr(config, name, None), int)), default=0)


def check_config(config: Any, where: str) -> None:
    """Raise ValueError for a configuration of an encoder-decoder, or with numbers that no model has."""
    kinds = getattr(config, "architectures", None) or []
    if getattr(config, "is_encoder_decoder", False) or any(kind in _encoder_decoders() for kind in kinds):
        raise ValueError(
            f"{where}: expected a decoder-only language model, found an encoder-decoder "
            f"({', '.join(kinds) or type(config).__name__}), whose decoder says nothing without its encoder: "
            "models of this kind are not supported"
        )
    context_of(config)
    if layers_of(config) > MOST_LAYERS:
        raise ValueError(f"{where}: expected at most {MOST_LAYERS:,} layers, found {layers_of(config):,}")
    for base in _rotary_bases(text_config(config)):
        if not 0 < base < math.inf:
            raise ValueError(f"{where}: rope_theta: expected a positive finite number, found {base}")


def _encoder_decoders() -> set[str]:
    """Names of the encoder-decoder classes of transformers."""
    try:
        auto: Any = importlib.import_module("transformers.models.auto.modeling_auto")
    except ImportError:
        return set()
    return set(auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values())


def _rotary_bases(config: Any) -> list[float]:
    parameters = getattr(config, "rope_parameters", None)
    nested = parameters.values() if isinstance(parameters, Mapping) else ()
    holders = [vars(config) if hasattr(config, "__dict__") else {}, parameters, *nested]
    found = [holder.get("rope_theta") for holder in holders if isinstance(holder, Mapping)]
    return [float(base) for base in found if isinstance(base, (int, float))]


@torch.inference_mode()
def check_causal(model: nn.Module, where: str) -> None:
    """Raise ValueError where what a model says after a token depends on the tokens that follow it."""
    device = device_of(model)
    v = token_limit(model) or 5
    ids = torch.arange(4, device=device).repeat(2, 1) % v  # (2, 4)
    ids[1, 3] = 4 % v
    was_training = model.training
    try:
        logits = model.eval()(ids).logits.float()  # (2, 4, v)
    except Exception:
        return  # it fails where it is used, with its own message
    finally:
        model.train(was_training)
    apart = float((logits[0, :3] - logits[1, :3]).abs().max())
    # Rounding in half precision is far below what another word changes.
    slack = 1e-4 if next(model.parameters()).dtype == torch.float32 else 0.05
    if apart > slack * float(logits[:, :3].std()):
        raise ValueError(
            f"{where}: expected a causal language model, found a {type(model).__name__}, whose prediction of a token "
            "depends on the tokens after it (an encoder, such as BERT): nothing that it scores would mean anything"
        )


def check_tokenizer(tokenizer: Tokenizer, where: str) -> None:
    """Raise ValueError for a tokenizer that gives no tokens, or that fails at a word it does not know."""
    try:
        count = len(tokenizer.encode(PROBE))
    except Exception as error:  # the library raises a bare Exception
        raise ValueError(
            f"{where}: expected a tokenizer for any text, found one that fails at what it does not know: {error}; give "
            "it an unknown token (unk_token), in tokenizer.json"
        ) from error
    if not count:
        raise ValueError(
            f"{where}: expected a tokenizer, found one of "
            f"{counted(tokenizer.vocab_size, 'entry')} that gives no token for a text: copy "
            "tokenizer.json (and what came with it) there, from where the model came from"
        )


def check_vocabulary(tokenizer: Tokenizer, model: nn.Module, where: str) -> None:
    """Raise ValueError where a tokenizer is not that of a model.

    Tokens that were added to it and have no embedding may stay: a document that has one is refused then.
    """
    limit = token_limit(model)
    if limit is None or tokenizer.vocab_size <= limit:
        return
    added = {int(id) for id in getattr(tokenizer, "added_ids", ())}
    most = max((id for id in tokenizer.vocabulary().values() if id not in added), default=0)
    if most >= limit or tokenizer.bos_id >= limit:
        raise ValueError(
            f"{where}: expected a tokenizer of at most {limit:,} ids, found {tokenizer.vocab_size:,}: model and "
            "tokenizer do not belong together"
        )


def hugging_face_tokenizer(tokenizer: Any, config: Any, where: str) -> BackendTokenizer:
    """Our interface for a fast tokenizer of Hugging Face, or one of the `tokenizers` library; a copy of it.

    What goes in front of a document is its own beginning of text; else that of the model's configuration, if it is a
    special token; else a separator of documents; else its end of text, which for a model of conversations is the end of
    a turn.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "get_vocab") or not hasattr(backend, "encode_batch"):
        slow = hasattr(tokenizer, "bos_token_id")
        raise (ValueError if slow else TypeError)(
            f"{where}: expected a fast Hugging Face tokenizer (tokenizer.json), found {type(tokenizer).__name__}"
            + (": pip install sentencepiece tiktoken, so that transformers can convert it, and load it again" * slow)
        )
    vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    added = backend.get_added_tokens_decoder()
    stated = getattr(text_config(config), "bos_token_id", None)
    candidates = [
        getattr(tokenizer, "bos_token_id", None),
        stated if isinstance(stated, int) and stated in added and added[stated].special else None,
        *(vocabulary.get(name) for name in SEPARATORS),
        getattr(tokenizer, "eos_token_id", None),
    ]
    start = next((int(id) for id in candidates if id is not None), None)
    found = BackendTokenizer(type(backend).from_str(backend.to_str()), start)
    found.original = tokenizer
    check_tokenizer(found, where)
    return found
