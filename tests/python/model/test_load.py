"""models.py: our folders and Hugging Face models made here load through one function."""

import importlib
import json

import numpy as np
import pytest
import torch
from torch import nn

from knnlm.model.checkpoint import save_model
from knnlm.model.load import fingerprint_of, load_model, pick_device, read_model_context
from knnlm.text.tokenizer import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
TEXT = "the cat sat on the mat\nand the dog sat on the cat\n" * 4


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    """Folders of a random GPT-2 and a random Llama with the same small BPE tokenizer."""
    transformers = pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("hf")
    tokenizer = Tokenizer.train_bpe([TEXT], 280)
    sizes = {"vocab_size": tokenizer.vocab_size, "bos_token_id": 0, "eos_token_id": 0}
    configs = {
        "gpt2": transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=48, **sizes),
        "llama": transformers.LlamaConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
            **sizes,
        ),
    }
    for name, config in configs.items():
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(root / name)
        fast = transformers.PreTrainedTokenizerFast(
            tokenizer_object=__import__("tokenizers").Tokenizer.from_str(tokenizer.to_json()),
            bos_token="<|endoftext|>",
            eos_token="<|endoftext|>",
        )
        fast.save_pretrained(root / name)
    return root


def test_our_folder_loads(tiny_model, tiny_tokenizer, tmp_path):
    save_model(tmp_path / "mine", tiny_model, tiny_tokenizer)
    loaded = load_model(tmp_path / "mine", device="cpu")
    ids = torch.arange(8)[None]
    assert torch.equal(loaded.model(ids).logits, tiny_model(ids).logits)
    assert (loaded.context, loaded.name, loaded.device.type) == (32, "mine", "cpu")
    assert loaded.tokenizer.fingerprint == tiny_tokenizer.fingerprint
    assert loaded.fingerprint == fingerprint_of(tiny_model)
    assert load_model(tmp_path / "mine", device="cpu", dtype="bfloat16").model.lm_head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(("name", "context"), [("gpt2", 48), ("llama", 64)])
def test_hugging_face_model_loads(hugging_face, name, context):
    loaded = load_model(hugging_face / name, device="cpu")
    assert (loaded.context, loaded.name) == (context, name)
    assert not loaded.model.training
    ids = loaded.tokenizer.encode(TEXT)
    assert loaded.tokenizer.decode(ids) == TEXT
    assert loaded.tokenizer.bos_id == 0
    with torch.no_grad():
        logits = loaded.model(torch.from_numpy(ids.astype(np.int64))[None, :20]).logits
    assert logits.shape == (1, 20, loaded.tokenizer.vocab_size)
    assert len(loaded.fingerprint) == 64
    assert loaded.fingerprint == load_model(hugging_face / name, device="cpu").fingerprint


def test_missing_transformers_says_what_to_install(monkeypatch, tmp_path):
    def refuse(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(ImportError, match=r"some/model is not a folder.*pip install 'knnlm\[hf\]'"):
        load_model("some/model")


def test_folder_without_a_model_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected config\.json"):
        load_model(tmp_path)


def test_a_name_that_nothing_has_is_said():
    pytest.importorskip("transformers")
    with pytest.raises(OSError, match=r"expected a model with its tokenizer.*no-such-model-here"):
        load_model("no-such-model-here")


def test_tokenizer_of_another_model_is_refused(tiny_model, tmp_path):
    save_model(tmp_path, tiny_model, Tokenizer.train_bpe([TEXT], 280))
    with pytest.raises(ValueError, match="do not belong together"):
        load_model(tmp_path)


def test_unknown_type_is_refused(tmp_path):
    with pytest.raises(ValueError, match="found 'int8'"):
        load_model(tmp_path, dtype="int8")


def test_damaged_configuration_is_a_value_error(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "knnlm-transformer", "vocab_size": 9, "d_model": 7})
    )
    with pytest.raises(ValueError, match="multiple of 2"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_the_default_device_is_a_gpu_if_there_is_one(cuda, mps, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device().type == expected
    assert pick_device("cpu") == torch.device("cpu")


def test_the_context_of_a_model_that_states_none():
    assert read_model_context(nn.Linear(1, 1)) == 2048
