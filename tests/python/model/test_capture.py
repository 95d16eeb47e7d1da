"""Capture: each representation is the tensor that Table 5 names, for our model and for Hugging Face architectures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_lm import TinyLM, TinyLoaded, tiny
from torch import nn

from knnlm.model.capture import REPRESENTATIONS, Capture, blocks_of
from knnlm.model.keys import iterate
from knnlm.model.transformer import TransformerConfig, TransformerLM
from knnlm.text.inputs import TokenDocument

IDS = torch.tensor([[0, 3, 1, 4, 1, 5], [2, 6, 5, 3, 5, 0]])

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}
LLAMA = {**SIZES, "num_key_value_heads": 2}

# Configuration, its sizes, and the modules whose *outputs* are the feed-forward input, the attention input and the end.
FAMILIES = {
    "Llama": (LLAMA, "model.layers.{}.post_attention_layernorm", "model.layers.{}.input_layernorm", "model.norm"),
    "Mistral": (LLAMA, "model.layers.{}.post_attention_layernorm", "model.layers.{}.input_layernorm", "model.norm"),
    "Qwen2": (LLAMA, "model.layers.{}.post_attention_layernorm", "model.layers.{}.input_layernorm", "model.norm"),
    "Gemma2": (
        {**LLAMA, "head_dim": 8},
        "model.layers.{}.pre_feedforward_layernorm",
        "model.layers.{}.input_layernorm",
        "model.norm",
    ),
    "GPT2": (
        {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
        "transformer.h.{}.ln_2",
        "transformer.h.{}.ln_1",
        "transformer.ln_f",
    ),
    "OPT": (
        {**SIZES, "ffn_dim": 32, "word_embed_proj_dim": 16},
        "model.decoder.layers.{}.final_layer_norm",
        "model.decoder.layers.{}.self_attn_layer_norm",
        "model.decoder.final_layer_norm",
    ),
    "GPTNeoX": (
        SIZES,
        "gpt_neox.layers.{}.post_attention_layernorm",
        "gpt_neox.layers.{}.input_layernorm",
        "gpt_neox.final_layer_norm",
    ),
    "Bloom": (
        {"vocab_size": 40, "hidden_size": 16, "n_layer": 2, "n_head": 2},
        "transformer.h.{}.post_attention_layernorm",
        "transformer.h.{}.input_layernorm",
        "transformer.ln_f",
    ),
    "GPTJ": (
        {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "rotary_dim": 4},
        "transformer.h.{}.ln_1",
        "transformer.h.{}.ln_1",
        "transformer.ln_f",
    ),
}


def spoil_norms(model: nn.Module) -> None:
    """Give each norm weights of its own, so that no two norms of one input agree."""
    for module in model.modules():
        if "norm" in type(module).__name__.lower() and isinstance(getattr(module, "weight", None), nn.Parameter):
            nn.init.normal_(module.weight, 1.0, 0.5)


def trace(model, ids, paths):
    """Inputs and outputs of modules in one plain forward pass."""
    seen = {}
    modules = dict(model.named_modules())
    handles = [
        modules[path].register_forward_hook(lambda _, args, out, path=path: seen.__setitem__(path, (args[0], out)))
        for path in paths
    ]
    with torch.inference_mode():
        logits = model(ids).logits
    for handle in handles:
        handle.remove()
    return seen, logits


def assert_captures(model, ffn, attention, final):
    paths = [path.format(layer) for path in (ffn, attention) for layer in (0, 1)] + [final]
    seen, plain = trace(model, IDS, paths)
    names = [(r, layer) for r in REPRESENTATIONS for layer in (-1, -2)]
    with Capture(model, names) as capture, torch.inference_mode():
        logits = model(IDS).logits
        keys = capture.by_name
    assert torch.equal(logits, plain), "capturing must not change the model"
    for layer in (0, 1):
        read, normed = seen[ffn.format(layer)]
        at = layer - 2
        expected = {
            "ffn-input": normed,
            "ffn-input-pre-norm": read,
            "attention-input": seen[attention.format(layer)][1],
            "attention-input-pre-norm": seen[attention.format(layer)][0],
            "block-output": seen[final][0] if layer == 1 else seen[attention.format(1)][0],
        }
        norm = dict(model.named_modules())[final]
        with torch.inference_mode():
            expected["normed-output"] = norm(expected["block-output"])
        for name, tensor in expected.items():
            key = keys[name, at]
            assert key.shape == (2, 6, 16)
            assert not key.requires_grad
            torch.testing.assert_close(key, tensor.reshape(2, 6, 16), msg=f"{name} of layer {at}")
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_our_kind_of_model():
    torch.manual_seed(0)
    model = TinyLM(vocabulary=40).eval()
    spoil_norms(model)
    assert_captures(model, "blocks.{}.ffn_norm", "blocks.{}.attention_norm", "final_norm")


def test_our_transformer():
    torch.manual_seed(0)
    config = TransformerConfig(vocab_size=40, d_model=16, n_layers=2, n_heads=2, context=32)
    model = TransformerLM(config).eval()
    spoil_norms(model)
    assert_captures(model, "blocks.{}.ffn_norm", "blocks.{}.attention_norm", "final_norm")


@pytest.mark.parametrize("family", FAMILIES)
def test_hugging_face(family):
    transformers = pytest.importorskip("transformers")
    sizes, ffn, attention, final = FAMILIES[family]
    if family == "GPTNeoX":
        sizes = {**sizes, "use_parallel_residual": False}
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**sizes, bos_token_id=0, eos_token_id=0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    spoil_norms(model)
    assert_captures(model, ffn, attention, final)


def test_post_norm_blocks_have_no_norm_in_front():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.Olmo2ForCausalLM(transformers.Olmo2Config(**LLAMA)).eval()
    with Capture(model, [("ffn-input", -1), ("ffn-input-pre-norm", -1)]) as capture, torch.inference_mode():
        model(IDS)
        after, before = capture.by_name.values()
    assert torch.equal(after, before)


def test_encoder_decoder_reads_the_decoder():
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes)).eval()
    assert blocks_of(model) is model.decoder.block
    with Capture(model) as capture, torch.inference_mode():
        model(input_ids=IDS, decoder_input_ids=IDS[:, :4])
        assert capture.keys.shape == (2, 4, 16)


def test_module_by_name_and_single_capture():
    model = TinyLM().eval()
    with Capture(model, "module:head") as named, Capture(model, "normed-output") as normed, torch.inference_mode():
        model(IDS)
        torch.testing.assert_close(named.keys, normed.keys)


class TwoNorms(TinyLM):
    """A norm of the head's own after the final norm."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.LayerNorm(16), self.head)
        for norm in (self.final_norm, self.head[0]):
            nn.init.normal_(norm.weight, 1.0, 0.5)


def test_the_final_norm_is_the_first_one_after_the_blocks():
    torch.manual_seed(0)
    model = TwoNorms().eval()
    names = [("block-output", -1), ("normed-output", -1), ("normed-output", 0)]
    with Capture(model, names) as capture, torch.inference_mode():
        seen, _ = trace(model, IDS, ["final_norm", "blocks.1"])
        keys = capture.by_name
        read, normed = seen["final_norm"]
        torch.testing.assert_close(keys["block-output", -1], read)
        torch.testing.assert_close(keys["normed-output", -1], normed)
        torch.testing.assert_close(keys["normed-output", 0], model.final_norm(seen["blocks.1"][0]))


@pytest.mark.parametrize("representation", [*REPRESENTATIONS, "module:head"])
def test_keys_alone_are_had_without_the_head(representation):
    model = TinyLM().eval()
    ran = []
    model.head.register_forward_hook(lambda *_: ran.append("head"))
    model.blocks[1].ffn.register_forward_hook(lambda *_: ran.append("last feed-forward"))
    with Capture(model, representation) as capture, torch.inference_mode():
        capture.run(model, IDS)
        keys = capture.keys
        assert ran == ["last feed-forward"] * (representation in ("block-output", "normed-output", "module:head"))
        model(IDS)
        torch.testing.assert_close(capture.keys, keys)


def test_a_module_that_reads_no_hidden_states_is_refused():
    loaded = TinyLoaded(TinyLM(), tiny().tokenizer)
    document = TokenDocument("a", np.arange(1, 9, dtype=np.uint32))
    with pytest.raises(ValueError, match=r"module:tokens: expected a module that reads hidden states.*token ids"):
        next(iterate(loaded, [document], captures=[("module:tokens", -1)], scores=False))
    with pytest.raises(ValueError, match=r"module:positions: expected"):
        next(iterate(loaded, [document], captures=[("module:positions", -1)]))

    class Odd(TinyLM):
        def __init__(self):
            super().__init__()
            self.expert = nn.Linear(16, 16)

        def forward(self, ids):
            self.expert(self.tokens(ids)[:, ::2])
            return super().forward(ids)

    routed = TinyLoaded(Odd(), loaded.tokenizer)
    with pytest.raises(ValueError, match=r"module:expert: .* reads one vector a position, \(1, 8\)"):
        next(iterate(routed, [document], captures=[("module:expert", -1)]))


def test_a_second_pass_replaces_the_first():
    model = TinyLM().eval()
    with Capture(model) as capture, torch.inference_mode():
        model(IDS)
        first = capture.keys.clone()
        model(IDS[:1, :3])
        assert capture.keys.shape == (1, 3, 16)
        torch.testing.assert_close(capture.keys[0], first[0, :3])


@pytest.mark.parametrize(
    ("representation", "layer", "message"),
    [
        ("ffn-output", -1, "expected one of"),
        ("ffn-input", 2, "2 blocks"),
        ("ffn-input", -3, "2 blocks"),
        ("module:blocks.7", -1, "no module named"),
    ],
)
def test_what_cannot_be_captured(representation, layer, message):
    model = TinyLM()
    with pytest.raises(ValueError, match=message):
        Capture(model, representation, layer)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_model_without_blocks_asks_for_a_module():
    with pytest.raises(ValueError, match="module:NAME"):
        Capture(nn.Linear(2, 2))


def test_keys_before_the_first_pass():
    with Capture(TinyLM()) as capture, pytest.raises(RuntimeError, match="run the model first"):
        _ = capture.keys
