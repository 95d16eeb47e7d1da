"""Capture: the six key representations of Khandelwal et al. 2020, Table 5, by hooks on module inputs, for any model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from knnlm.model.key_spec import REPRESENTATIONS as REPRESENTATIONS
from knnlm.model.modules import name_of, output_embedding, unwrapped

CaptureName = tuple[str, int]
"""(representation, layer); a negative layer counts from the last one."""

_FFN = ("ffn", "mlp", "feed_forward", "block_sparse_moe", "fc1", "mlp_block")
_ATTENTION = ("attention", "attn", "self_attn", "self_attention", "mixer")


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """The decoder's list of blocks: the first ModuleList whose elements have a feed-forward module.

    Raises ValueError if there is none; name a module then, as `module:NAME`.
    """
    get_decoder = getattr(model, "get_decoder", None)
    decoder = get_decoder() if callable(get_decoder) else None
    for root in (decoder, model):
        for module in root.modules() if isinstance(root, nn.Module) else ():
            if isinstance(module, nn.ModuleList) and len(module) and _find_ffn(module[-1]) is not None:
                return module
    raise ValueError(
        f"{type(model).__name__}: no list of decoder blocks with one of the feed-forward attributes {_FFN} was found; "
        "choose a module, whose input becomes the key, with representation='module:NAME' (in commands --key)"
    )


def fallback(model: nn.Module) -> str | None:
    """Name of the output embedding, whose input is the key of a model without blocks as `blocks_of` knows them.

    None where there are such blocks, or where the model does not name its output embedding.
    """
    model = unwrapped(model)
    try:
        blocks_of(model)
    except ValueError:
        head = output_embedding(model)
        return None if head is None else name_of(model, head)
    return None


def _find_ffn(block: nn.Module) -> nn.Module | None:
    for name in _FFN:
        if isinstance(module := getattr(block, name, None), nn.Module):
            return module
    sublayers = getattr(block, "layer", None)  # T5: sub-layers in a list
    last = sublayers[-1] if isinstance(sublayers, nn.ModuleList) and len(sublayers) else None
    return getattr(last, "DenseReluDense", None)


def _find_attention(block: nn.Module) -> nn.Module | None:
    for name in _ATTENTION:
        if isinstance(module := getattr(block, name, None), nn.Module):
            return module
    sublayers = getattr(block, "layer", None)
    return getattr(sublayers[0], "SelfAttention", None) if isinstance(sublayers, nn.ModuleList) else None


def _first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value
    raise TypeError("a module was called without a tensor; choose another module as the key")


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


class _AllCapturedError(Exception):
    """Leaves a forward pass once nothing more is wanted from it."""


class Capture:
    """Keeps the inputs of chosen modules while the model runs, several representations from one forward pass.

        with Capture(model, "ffn-input", -1) as capture:
            logits = model(input_ids).logits   # (B, T, v)
            keys = capture.keys                # (B, T, d), detached

    captures: one representation with `layer`, or a list of (representation, layer), read as `capture.by_name[...]`.
    Closing removes every hook. Raises ValueError for an unknown representation, layer or module.

    * ffn-input, attention-input: what the block's module reads (in a pre-norm block: the norm's output).
    * ffn-input-pre-norm, attention-input-pre-norm: what the norm in front of that module reads; where no norm is in
      front (post-norm blocks) the two are the same.
    * block-output: what the next block, or the final norm, reads.
    * normed-output: the final norm applied to that; for the last layer this is what the output embedding reads.
    """

    def __init__(
        self, model: nn.Module, representation: str | Sequence[CaptureName] = "ffn-input", layer: int = -1
    ) -> None:
        """Attach the hooks."""
        self.names: list[CaptureName]
        self.names = [(representation, layer)] if isinstance(representation, str) else list(representation)
        self._kept: dict[CaptureName, Tensor] = {}
        self._norms: list[tuple[Tensor, Tensor]] = []  # (input, output) of the norms of this pass
        self._handles: list[Any] = []
        self._batch = 1
        self._after_blocks = False
        self._paused = False
        self._final_norm: nn.Module | None = None
        self._stop = False
        try:
            self._attach(model)
        except BaseException:
            self.close()
            raise

    def _attach(self, model: nn.Module) -> None:
        self._pre(model, self._begin)
        modules = dict(model.named_modules())
        for name in self.names:
            representation, layer = name
            if representation.startswith("module:"):
                path = representation.removeprefix("module:")
                if path not in modules:
                    raise ValueError(f"no module named {path!r} in {type(model).__name__}; see model.named_modules()")
                self._pre(modules[path], self._keeper(name))
            elif representation in REPRESENTATIONS:
                self._attach_block(blocks_of(model), name, layer)
            else:
                raise ValueError(
                    f"representation: expected one of {', '.join(REPRESENTATIONS)} or module:NAME, "
                    f"found {representation!r}"
                )
        if any(name[0] in ("block-output", "normed-output") for name in self.names):
            self._watch_final_norm(model, blocks_of(model))

    def _attach_block(self, blocks: nn.ModuleList, name: CaptureName, layer: int) -> None:
        representation = name[0]
        if not -len(blocks) <= layer < len(blocks):
            raise ValueError(f"layer: the model has {len(blocks)} blocks, found {layer}")
        layer %= len(blocks)
        if representation in ("block-output", "normed-output"):
            if layer + 1 < len(blocks):
                self._pre(blocks[layer + 1], self._keeper(name))
            return
        find = _find_ffn if representation.startswith("ffn") else _find_attention
        module = find(blocks[layer])
        if module is None:
            raise ValueError(
                f"{type(blocks[layer]).__name__} has no module that {representation} could be read from; "
                "use representation='module:NAME' (in commands --key module:NAME)"
            )
        if representation.endswith("-pre-norm"):
            for child in blocks[layer].modules():
                if _is_norm(child):
                    self._handles.append(child.register_forward_hook(self._keep_norm, with_kwargs=True))
            self._pre(module, self._keeper(name, before_norm=True))
        else:
            self._pre(module, self._keeper(name))

    def _watch_final_norm(self, model: nn.Module, blocks: nn.ModuleList) -> None:
        inside = set(blocks.modules())
        self._handles.append(blocks[-1].register_forward_hook(lambda *_: setattr(self, "_after_blocks", True)))
        last = [
            name
            for name in self.names
            if name[0] in ("block-output", "normed-output") and name[1] in (-1, len(blocks) - 1)
        ]

        def keep(module: nn.Module, x: Tensor) -> None:
            if self._after_blocks:
                self._after_blocks = False  # only the first norm after the blocks
                self._final_norm = module
                self._kept.update(dict.fromkeys(last, x))

        for module in model.modules():
            if module not in inside and _is_norm(module):
                self._pre(module, keep)

    def _pre(self, module: nn.Module, keep: Callable[[nn.Module, Tensor], None]) -> None:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not self._paused:
                keep(module, _first_tensor(args, kwargs).detach())
                if self._stop and self._complete():
                    raise _AllCapturedError

        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _begin(self, module: nn.Module, x: Tensor) -> None:
        self._batch = x.shape[0]
        self._kept.clear()
        self._norms.clear()
        self._after_blocks = False

    def _keep_norm(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not self._paused and isinstance(output, Tensor):
            self._norms.append((_first_tensor(args, kwargs).detach(), output.detach()))

    def _keeper(self, name: CaptureName, before_norm: bool = False) -> Callable[[nn.Module, Tensor], None]:
        def keep(module: nn.Module, x: Tensor) -> None:
            if before_norm:
                # The norm in front is the one whose output is this very memory.
                fed = [i for i, (_, out) in enumerate(self._norms) if out.data_ptr() == x.data_ptr()]
                x = self._norms[fed[-1]][0] if fed else x
            self._kept[name] = x

        return keep

    def _complete(self) -> bool:
        needs_norm = any(name[0] == "normed-output" for name in self.names)
        return len(self._kept) == len(self.names) and (self._final_norm is not None or not needs_norm)

    def _finish(self, name: CaptureName) -> Tensor:
        if name not in self._kept:
            raise RuntimeError(
                f"{name[0]} of layer {name[1]} was not seen in the last forward pass; run the model first, or use "
                "representation='module:NAME' (in commands --key) if this model has no norm after its blocks"
            )
        x = self._kept[name]
        if not x.is_floating_point() or x.dim() < 2:
            raise ValueError(
                f"{name[0]}: expected a module that reads hidden states (B, T, d), found one that reads "
                f"{'token ids' if not x.is_floating_point() else 'another shape'}; choose one inside of it"
            )
        if name[0] == "normed-output":
            if self._final_norm is None:
                raise RuntimeError("this model has no norm after its blocks: normed-output does not exist")
            self._paused = True
            try:
                with torch.no_grad():
                    x = self._final_norm(x)
            finally:
                self._paused = False
        return x.reshape(self._batch, -1, x.shape[-1])  # (B, T, d); OPT's feed-forward reads (B T, d)

    def of_batch(self, batch: int) -> Tensor:
        """`keys` of a model that was called in a way that does not tell the batch, (batch, T, d)."""
        self._batch = batch
        return self.keys

    def run(self, model: nn.Module, input_ids: Tensor, **options: Any) -> None:
        """Run the model only until every key is there: the head, half the work of a small model, is left out.

        input_ids: (B, T) int64. options: of the model's forward. Read `keys` or `by_name` afterwards.
        """
        self._stop = True
        try:
            model(input_ids, **options)
        except _AllCapturedError:
            pass
        finally:
            self._stop = False

    @property
    def keys(self) -> Tensor:
        """The captured input of the last forward pass, (B, T, d), for a single representation."""
        if len(self.names) != 1:
            raise ValueError("several representations are captured: read them from by_name")
        return self._finish(self.names[0])

    @property
    def by_name(self) -> dict[CaptureName, Tensor]:
        """Every captured representation of the last forward pass, (B, T, d) each."""
        return {name: self._finish(name) for name in self.names}

    def close(self) -> None:
        """Remove the hooks and forget what was captured."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._kept.clear()
        self._norms.clear()

    def __enter__(self) -> Capture:
        """The capture itself; hooks are attached from construction on."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the hooks."""
        self.close()
