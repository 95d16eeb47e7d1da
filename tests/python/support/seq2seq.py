"""Small encoder-decoders of many families, one tokenizer for both languages, and a few pairs."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

PAIRS = [
    ("ein Hund rennt", "a dog runs"),
    ("eine Katze schläft auf der Matte", "a cat sleeps on the mat"),
    ("der Hund schläft", "the dog sleeps"),
    ("zwei Kinder spielen im Schnee", "two children play in the snow"),
    ("die Straße ist naß", "the street is wet"),
    ("ein Mann liest ein Buch", "a man reads a book"),
]

FAMILIES = ("Marian", "Bart", "MBart", "M2M100", "T5", "Pegasus", "Blenderbot", "BlenderbotSmall", "PLBart", "UMT5")

_SIZES: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 64,
}
_T5: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}


@cache
def words() -> Any:
    """Words and punctuation of the pairs, as transformers wraps a tokenizer; it ends both sides with </s>."""
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer: Any = trainers.WordLevelTrainer(special_tokens=["<pad>", "</s>", "<unk>", "<s>"], show_progress=False)
    made.train_from_iterator([side for pair in PAIRS for side in pair], trainer)
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token="<s>"
    )


def seq2seq(family: str, seed: int = 0, **more: Any) -> Any:
    """A model of a family with random weights, more words than its tokenizer, and a bias of logits if it has one."""
    import transformers

    start = 1 if family in ("MBart", "PLBart") else 0  # these two put the last label in front
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3, "decoder_start_token_id": start}
    sizes = _T5 if family in ("T5", "UMT5") else _SIZES
    config = getattr(transformers, f"{family}Config")(vocab_size=len(words()) + 5, **sizes, **ids, **more)
    config.forced_eos_token_id = None
    torch.manual_seed(seed)
    name = "MarianMTModel" if family == "Marian" else f"{family}ForConditionalGeneration"
    model = getattr(transformers, name)(config).eval()
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias += torch.randn_like(model.final_logits_bias)
    for parameter in model.parameters():  # of a size that tells positions and words apart
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model
