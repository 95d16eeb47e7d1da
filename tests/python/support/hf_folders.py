"""Small Hugging Face folders, made here: tokenizers of several kinds, and a model beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from architectures import tiny_model
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXT = (
    "the cat sat on the mat\nand the dog sat on the cat\n"
    "Straße und Fluß, naïve Café: дом и лес, 中文 和 日本語 👍🏽\n"
    "def f(x):\n    return x + 1234\n"
) * 4

KINDS = ("bytes", "metaspace", "unigram", "wordpiece")


def tokenizer(kind: str, specials: tuple[str, ...] = ("<unk>", "<s>", "</s>"), size: int = 400) -> Tokenizer:
    """BPE of bytes (GPT-2); BPE on ▁ with byte fallback (Llama 2); SentencePiece unigram; BERT's word pieces."""
    if kind == "bytes":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer: Any = trainers.BpeTrainer(
            vocab_size=size, special_tokens=list(specials), initial_alphabet=alphabet, show_progress=False
        )
    elif kind == "metaspace":
        made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        trainer = trainers.BpeTrainer(
            vocab_size=size, special_tokens=[*specials, *(f"<0x{b:02X}>" for b in range(256))], show_progress=False
        )
    elif kind == "unigram":
        made = Tokenizer(models.Unigram())
        made.normalizer = normalizers.NFKC()
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=120, special_tokens=list(specials), unk_token="<unk>", show_progress=False
        )
    else:
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.normalizer = normalizers.BertNormalizer(lowercase=True)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=list(specials), show_progress=False)
    made.train_from_iterator([TEXT], trainer)
    return made


def fast(made: Tokenizer, **specials: str) -> Any:
    """The same as transformers wraps it; by default with <s>, </s> and <unk> where it has them."""
    from transformers import PreTrainedTokenizerFast

    known = made.get_vocab()
    names = specials or {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=made, **{name: token for name, token in names.items() if token in known}
    )


def save_folder(path: Path, made: Tokenizer, architecture: str = "Llama", **more: Any) -> Path:
    """A folder with a model whose vocabulary is that of the tokenizer, and the tokenizer."""
    vocabulary = max(made.get_vocab().values()) + 1
    wrapped = fast(made)
    ids = {"bos_token_id": wrapped.bos_token_id, "eos_token_id": wrapped.eos_token_id}
    tiny_model(architecture, **{"vocab_size": vocabulary, **ids, **more}).save_pretrained(path)
    wrapped.save_pretrained(path)
    return path
