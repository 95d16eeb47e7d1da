"""Generate: a model's own `generate` with a store, from text, ids or messages; each token with where it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from knnlm.hf.drafts import DraftCounts, drafting
from knnlm.hf.explain import explain, until_the_end
from knnlm.hf.hooks import Attached
from knnlm.lm.explain import Explanation
from knnlm.model.modules import casts_kept, device_of
from knnlm.system.name_of_file import warn_of_name

DRAFT = 10
"""Tokens drafted at a time, unless another number is asked for: as `prompt_lookup_num_tokens` of transformers."""


@dataclass(frozen=True)
class Generated:
    """What was generated, and where it comes from.

    sequences: (n, L) ids as transformers returns them, padded. rows: the same without padding, up to and with the end
    of text. starts: position of the first new token in each row. output: what `generate` of transformers returned.
    drafts: how many tokens were drafted and accepted, None without `drafts`.
    """

    memory: Attached = field(repr=False)
    sequences: Tensor = field(repr=False)
    rows: list[list[int]] = field(repr=False)  # without padding
    starts: list[int]
    output: Any = field(repr=False)
    drafts: DraftCounts | None = None

    @property
    def new_tokens(self) -> list[list[int]]:
        """The generated ids of each sequence, its end of text with them."""
        return [row[start:] for row, start in zip(self.rows, self.starts, strict=True)]

    @cached_property
    def texts(self) -> list[str]:
        """The generated text of each sequence, without special tokens; needs the tokenizer."""
        return [_decoded(self.memory, row) for row in self.new_tokens]

    @property
    def text(self) -> str:
        """The text of the first sequence."""
        return self.texts[0]

    @cached_property
    def explanations(self) -> list[Explanation]:
        """Each sequence's new tokens with p_LM, p_kNN, p, neighbors, their shares and documents; a pass each."""
        return [
            explain(self.memory, row, start, f"generated {number}")
            for number, (row, start) in enumerate(zip(self.rows, self.starts, strict=True), start=1)
        ]

    def to_dict(self, neighbors: int = 8) -> dict[str, Any]:
        """As JSON: of each sequence its text, if there is a tokenizer, and its tokens as of `Explanation.to_dict`."""
        found = [one.to_dict(neighbors) for one in self.explanations]
        if self.memory.tokenizer is not None:
            for one, text in zip(found, self.texts, strict=True):
                one["text"] = text
        return {"sequences": found}

    def table(self, index: int = 0, neighbors: int = 5) -> Any:
        """A table for the terminal (rich) of one sequence: each token, its probabilities and nearest neighbors."""
        from knnlm.report.table import to_table

        return to_table(self._shown(index, neighbors))

    def page(self, path: str | Path, index: int | None = None, neighbors: int = 6) -> Path:
        """Write one sequence, or all of them, as an HTML page that needs no network; returns its path."""
        from knnlm.report.why_page import why_page
        from knnlm.system.own_files import write_text

        s = self.memory.settings
        facts = {"settings": f"λ {s.lambda_:.3f}, T {s.temperature:.4g}, k {s.k}"}
        shown = self.explanations if index is None else [self.explanations[index]]
        page = why_page("Generated, and why", facts, shown, _interface(self.memory), neighbors)
        write_text(Path(path), page)
        return Path(path)

    def _shown(self, index: int, neighbors: int) -> Any:
        from knnlm.report.rows import rows

        return rows(self.explanations[index], _interface(self.memory), neighbors=neighbors, left=24, right=6)


def generate(
    memory: Attached,
    inputs: str | Sequence[Any] | Tensor | None = None,
    *,
    messages: Sequence[Any] | None = None,
    drafts: bool | int = False,
    **options: Any,
) -> Generated:
    """See `memory.Memory.generate`."""
    if (inputs is None) == (messages is None):
        raise TypeError("generate: expected either inputs or messages, a prompt or a conversation")
    streamer = options.get("streamer")
    if streamer is not None and (options.get("num_return_sequences") or 1) > 1:
        raise ValueError("num_return_sequences: expected 1 with a streamer, which shows one text, found more")
    prompts = _prompts(memory, inputs, messages)
    longest = max(map(len, prompts))
    module = memory.module
    settings = options.get("generation_config") or module.generation_config
    new = options.get("max_new_tokens", getattr(settings, "max_new_tokens", None))
    if longest + (1 if new is None else new) > memory.context:
        raise ValueError(
            f"prompt: expected at most {memory.context:,} tokens with those that are generated, found {longest:,} and "
            f"{new or 1:,} to come: cut it, or ask for fewer"
        )
    pad = next((int(id) for id in (_special(memory, "pad"), _special(memory, "eos")) if id is not None), 0)
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=device_of(module))
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=ids.device)
    counts = None
    with ExitStack() as stack:
        if memory.keys.autocast is not None:
            stack.enter_context(casts_kept())
        if drafts:
            most = DRAFT if drafts is True else int(drafts)
            _check_drafts(options, len(prompts))
            room = min(memory.context, longest + (new or memory.context))
            counts = stack.enter_context(drafting(memory, most, room))
            options = {**options, "prompt_lookup_num_tokens": most}
        model: Any = memory.model
        output = model.generate(input_ids=ids, attention_mask=mask, pad_token_id=pad, **options)
    sequences: Tensor = output if isinstance(output, Tensor) else output.sequences
    copies = len(sequences) // len(prompts)
    rows, starts = [], []
    for number, sequence in enumerate(sequences.tolist()):
        prompt = prompts[number // copies]
        row = prompt + sequence[longest:]
        starts.append(len(prompt))
        rows.append(until_the_end(row, len(prompt), options.get("eos_token_id", settings.eos_token_id)))
    return Generated(memory, sequences, rows, starts, output, counts)


def _check_drafts(options: Mapping[str, Any], batch: int) -> None:
    if batch > 1 or (options.get("num_beams") or 1) > 1 or (options.get("num_return_sequences") or 1) > 1:
        raise ValueError("drafts: expected one prompt and one sequence without beams, as assisted decoding has them")


def _prompts(memory: Attached, inputs: Any, messages: Any) -> list[list[int]]:
    """The ids of each prompt. Raises TypeError for what is none, ValueError for an empty one."""
    tokenizer = memory.tokenizer
    if messages is not None:
        if not hasattr(tokenizer, "apply_chat_template"):
            raise TypeError(
                "messages: expected a tokenizer of transformers with a chat template: attach(…, tokenizer=…)"
            )
        many = messages if messages and isinstance(messages[0], (list, tuple)) else [messages]
        found = [
            list(tokenizer.apply_chat_template(one, add_generation_prompt=True, return_dict=False)) for one in many
        ]
    elif isinstance(inputs, str):
        found = [_encoded(memory, inputs)]
    elif isinstance(inputs, Tensor):
        found = [[int(id) for id in row] for row in (inputs if inputs.dim() == 2 else inputs[None])]
    elif isinstance(inputs, Sequence) and len(inputs) and all(isinstance(one, str) for one in inputs):
        found = [_encoded(memory, one) for one in inputs]
    else:
        raise TypeError(
            f"inputs: expected a text, a list of texts or a tensor of ids, found a {type(inputs).__name__}; of a batch "
            "of ids with padding call model.generate(input_ids=…, attention_mask=…)"
        )
    if not all(found):
        raise ValueError("prompt: expected at least one token, found none: give some text")
    return found


def _encoded(memory: Attached, text: str) -> list[int]:
    tokenizer = memory.tokenizer
    if tokenizer is None:
        raise TypeError("generate: expected ids, or a tokenizer for text: attach(model, store, tokenizer=…)")
    warn_of_name(text, "prompt")
    if callable(tokenizer):
        return [int(id) for id in tokenizer(text)["input_ids"]]
    own = _interface(memory)
    return [int(own.bos_id), *(int(id) for id in own.encode(text))]


def _decoded(memory: Attached, ids: list[int]) -> str:
    tokenizer = memory.tokenizer
    if tokenizer is None:
        raise TypeError("text: expected a tokenizer: attach(model, store, tokenizer=…)")
    if callable(tokenizer):
        return str(tokenizer.decode(ids, skip_special_tokens=True))
    return str(_interface(memory).decode(ids))


def _interface(memory: Attached) -> Any:
    """The tokenizer as the rest of the package knows one."""
    from knnlm.model.given import as_tokenizer
    from knnlm.model.modules import config_of

    return as_tokenizer(memory.tokenizer, config_of(memory.module))


def _special(memory: Attached, name: str) -> int | None:
    """The id of padding or of the end of text, as tokenizer, generation settings or configuration name it."""
    for holder in (memory.tokenizer, getattr(memory.module, "generation_config", None), memory.module.config):
        found = getattr(holder, f"{name}_token_id", None)
        if isinstance(found, (list, tuple)) and found:
            return int(found[0])
        if isinstance(found, int):
            return found
    return None
