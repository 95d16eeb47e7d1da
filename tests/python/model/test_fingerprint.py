"""Fingerprints of weights: what is the same model however it is wrapped, and what is another one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from method import generate
from tiny_lm import Doc, TinyLM, TinyLoaded, texts, tiny
from torch import nn
from wrapped import Peft, Wrapper

from knnlm.build.dump import dump
from knnlm.knn_lm import KNNLM
from knnlm.model.fingerprint import fingerprint_of
from knnlm.model.identity import check, describe
from knnlm.model.key_spec import IdentityError, KeySpec
from knnlm.model.keys import iterate
from knnlm.model.load import LoadedModel
from knnlm.model.modules import device_of, dtype_of, unwrapped
from knnlm.reference import BruteForceStore


def test_it_sees_bytes_names_shapes_and_types():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    first = fingerprint_of(model)
    assert fingerprint_of(model) == first
    variants = [nn.Linear(3, 2), nn.Linear(3, 2).bfloat16(), nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 2))]
    for variant in variants:
        with torch.no_grad():
            for target, source in zip(variant.parameters(), model.parameters(), strict=True):
                target.copy_(source.reshape(target.shape) if target.numel() == source.numel() else source[:1].sum())
    assert fingerprint_of(variants[0]) == first  # equal bytes in another object
    with torch.no_grad():
        variants[0].weight[1, 2] = torch.nextafter(variants[0].weight[1, 2], torch.tensor(9.0))
    assert len({first, *(fingerprint_of(variant) for variant in variants)}) == 5


def test_it_does_not_depend_on_memory_layout():
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    with torch.no_grad():
        other.bias.copy_(model.bias)
        other.weight = nn.Parameter(model.weight.T.contiguous().T)
    assert not other.weight.is_contiguous()
    assert fingerprint_of(other) == fingerprint_of(model)


class Adapted(nn.Module):
    """A linear layer with adapters, with the names of PEFT's tuner layers."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = layer
        self.lora_A, self.lora_B = nn.ModuleDict(), nn.ModuleDict()
        self.active_adapters: list[str] = []
        self.merged_adapters: list[str] = []
        self.scaling: dict[str, float] = {}
        self.disable_adapters = False

    def add(self, name: str) -> None:
        self.lora_A[name] = nn.Linear(self.base_layer.in_features, 2, bias=False)
        self.lora_B[name] = nn.Linear(2, self.base_layer.out_features, bias=False)
        self.scaling[name] = 1.0

    def forward(self, x):
        y = self.base_layer(x)
        for name in [] if self.disable_adapters else self.active_adapters:
            y = y + self.scaling[name] * self.lora_B[name](self.lora_A[name](x))
        return y


def wrapped(model):
    """The same weights, wrapped in everything that people wrap models in."""
    yield torch.compile(model, backend="eager")
    yield nn.DataParallel(model)
    yield Wrapper("module", model)
    yield Wrapper("module", torch.compile(model, backend="eager"))
    yield Wrapper("base_model", Wrapper("model", model))  # the names of PEFT, and nothing else of it
    yield Peft(model)
    yield torch.compile(Peft(model), backend="eager")


def test_wrappers_do_not_change_it():
    model = tiny().model
    first = fingerprint_of(model)
    for wrapper in wrapped(model):
        assert fingerprint_of(wrapper) == first, type(wrapper)
    inside = tiny().model
    inside.blocks[0] = torch.compile(inside.blocks[0], backend="eager")
    assert any("_orig_mod" in name for name, _ in inside.named_parameters())
    assert fingerprint_of(inside) == first
    assert fingerprint_of(Wrapper("other", model)) != first


def test_an_active_adapter_is_other_weights():
    model = tiny().model
    first = fingerprint_of(model)
    model.head = adapted = Adapted(model.head)
    peft = Peft(model)
    adapted.add("a")
    adapted.add("b")
    assert fingerprint_of(peft) == first  # they are there, and do nothing
    adapted.active_adapters = ["a"]
    with_a = fingerprint_of(peft)
    adapted.active_adapters = ["b"]
    with_b = fingerprint_of(peft)
    adapted.scaling["b"] = 2.0
    assert len({first, with_a, with_b, fingerprint_of(peft)}) == 4
    adapted.disable_adapters = True
    assert fingerprint_of(peft) == first
    adapted.disable_adapters = False
    adapted.active_adapters, adapted.merged_adapters = ["a"], ["a"]
    with torch.no_grad():
        adapted.base_layer.weight.add_(1.0)
    plain = tiny().model
    with torch.no_grad():
        plain.head.weight.add_(1.0)
    assert fingerprint_of(peft) == fingerprint_of(plain)  # merged, it is in the weights


@pytest.mark.parametrize("number", range(7))
def test_a_wrapped_model_uses_the_store_of_the_plain_one(number):
    loaded = LoadedModel(tiny().model, tiny().tokenizer, 24, "tiny")
    store = BruteForceStore(16)
    dump(loaded, texts(), store)
    assert store.attributes["model"]["fingerprint"] == loaded.fingerprint
    plain = KNNLM(loaded, store)
    wrapper = list(wrapped(loaded.model))[number]
    with torch.inference_mode():
        wrapper(torch.arange(5)[None])  # what is compiled is compiled before there are hooks
    both = KNNLM(dataclasses.replace(loaded, model=wrapper), store), KNNLM(wrapper, store, tokenizer=loaded.tokenizer)
    for lm in both:
        np.testing.assert_array_equal(lm.log_probs("abcd abcd"), plain.log_probs("abcd abcd"))
        assert lm.generate("ab", max_new_tokens=5) == plain.generate("ab", max_new_tokens=5)


def test_modules_compiled_in_place_show_their_keys():
    loaded = tiny()
    document = Doc("a", "abcde")
    (plain,) = iterate(loaded, [document])
    expected = [t.id for t in generate(loaded, [1, 2, 3, 4], max_new_tokens=1)]
    loaded.model.compile(backend="eager")
    with torch.inference_mode():
        loaded.model(torch.arange(5)[None])  # the very shape: it is not compiled again for another one
    (chunk,) = iterate(loaded, [document])
    np.testing.assert_array_equal(chunk.key, plain.key)
    assert [t.id for t in generate(loaded, [1, 2, 3, 4], max_new_tokens=1)] == expected


def test_an_adapter_with_positions_of_its_own_is_refused():
    loaded = tiny()
    with pytest.raises(ValueError, match=r"prompt-learning adapter.*LoRA"):
        unwrapped(Peft(loaded.model, prompt_learning=True))


def test_the_type_of_the_weights_is_named():
    torch.manual_seed(0)
    model = TinyLM()
    loaded = LoadedModel(model, tiny().tokenizer, 24, "tiny")
    store = BruteForceStore(16)
    store.set_attributes(describe(loaded, KeySpec()))
    assert store.attributes["model"]["dtype"] == "float32"
    half = LoadedModel(TinyLM().bfloat16(), tiny().tokenizer, 24, "tiny")
    with pytest.raises(IdentityError, match=r"loaded as bfloat16, the store is of float32.*--dtype float32\)$"):
        check(store, half)
    with pytest.raises(IdentityError, match=r"model weights \(written by tiny, this is other\)"):
        check(store, LoadedModel(TinyLM(), tiny().tokenizer, 24, "other"))
    assert dtype_of(nn.Sequential(nn.Linear(9, 9).bfloat16(), nn.LayerNorm(9))) == "bfloat16"


def test_weights_that_are_not_in_memory_are_said():
    with torch.device("meta"):
        model = TinyLM()
    with pytest.raises(ValueError, match=r"TinyLM in memory, found tokens.weight on the meta device.*device_map"):
        fingerprint_of(model)
    with pytest.raises(ValueError, match="meta device"):
        KNNLM(model, None, tokenizer=tiny().tokenizer).perplexity("abc")
    with pytest.raises(ValueError, match="meta device"):
        next(iterate(TinyLoaded(model, tiny().tokenizer), [Doc("a", "abc")]))
    with pytest.raises(ValueError, match="expected a model with weights"):
        device_of(nn.Identity())
