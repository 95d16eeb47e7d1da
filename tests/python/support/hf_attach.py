"""What tests of an attached store share: a small model with its tokenizer, and settings of a search."""

from typing import Any

from architectures import tiny_model

SETTINGS: dict[str, Any] = {"lambda_": 0.4, "temperature": 3.0, "k": 8, "exact": True}


def model_of(words: Any, name: str = "Llama", **more: Any) -> Any:
    """A model with more words than its tokenizer."""
    ids = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    return tiny_model(name, vocab_size=330, **ids, **more)


def untouched(model: Any) -> bool:
    """Whether no module has a hook."""
    return all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
