"""Memory: an attached store with what is asked of the two together: text with its sources, and why a text is likely."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from knnlm.hf.explain import explain
from knnlm.hf.generate import Generated, generate
from knnlm.hf.hooks import Attached
from knnlm.lm.explain import Explanation


class Memory(Attached):
    """A store attached to a model; made by `attach`, removed by `detach` or at the end of a `with`."""

    def generate(
        self, inputs: Any = None, *, messages: Any = None, drafts: bool | int = False, **options: Any
    ) -> Generated:
        """The model's own `generate` over text, ids or a conversation; each new token with where it came from.

        inputs: a text, a list of texts, or ids (L,) or (B, L) without padding. messages: a conversation for the chat
        template of the tokenizer, or a list of them. drafts: have the store guess so many tokens at a time (True: 10),
        which the model checks in one pass; greedy text stays the same. options: of `generate` of transformers
        (max_new_tokens, do_sample, num_beams, streamer …).

        Returns `hf.generate.Generated`: sequences, texts, explanations, `to_dict()`, `table()`, `page(path)`.

        Raises:
            TypeError: text without a tokenizer, or messages for one without a chat template.
            ValueError: a prompt that with what is asked for does not fit the context; drafts for several sequences;
                num_return_sequences with a streamer.
        """
        return generate(self, inputs, messages=messages, drafts=drafts, **options)

    def explain(self, ids: Sequence[int], start: int = 1, name: str = "text") -> Explanation:
        """Tokens from `start` on of ids (L,) with p_LM, p_kNN, p and neighbors, as the model reads them; one pass."""
        return explain(self, ids, start, name)
