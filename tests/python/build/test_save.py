"""Saved folders: moved anywhere they give the same answers; what cannot be saved is refused, and leaves nothing."""

from __future__ import annotations

import shutil

import pytest
import torch
from click.testing import CliRunner
from hf_attach import model_of
from hf_folders import TEXT, fast, save_folder, tokenizer
from torch import nn

from knnlm import KNNLM, Datastore
from knnlm.cli import main
from knnlm.model.load import LoadedModel
from knnlm.model.transformer import TransformerConfig, TransformerLM
from knnlm.system.usage import UsageError
from knnlm.text.tokenizer import Tokenizer

pytest.importorskip("transformers")
PROMPT = "the cat sat on the"


def ours():
    torch.manual_seed(3)
    words = Tokenizer.train_bpe([TEXT], 300)
    sizes = TransformerConfig(words.vocab_size, context=32, d_model=16, n_layers=1, n_heads=2)
    return LoadedModel(TransformerLM(sizes).eval(), words, 32, "ours")


def answers(lm):
    return lm.generate(PROMPT, max_new_tokens=6), lm.perplexity(PROMPT + " mat", exclude="none")


@pytest.mark.parametrize("kind", ["ours", "transformers", "of a folder", "a bare tokenizer"])
def test_a_saved_folder_opens_anywhere(tmp_path, kind):
    made, words = None, tokenizer("bytes", size=300)
    if kind == "ours":
        model = ours()
    elif kind == "of a folder":
        model = save_folder(tmp_path / "model", words)
    else:
        made = words if kind == "a bare tokenizer" else fast(words)
        model = model_of(fast(words))
        if kind == "transformers":
            made.chat_template = "{{ messages }}"
    with KNNLM.build(model, [("a", TEXT)], tmp_path / "store", tokenizer=made, threads=1) as lm:
        tuned = {"lambda_": 0.4, "temperature": 2.0, "k": 8}
        lm.datastore.set_attributes({**lm.datastore.attributes, "tuned": tuned})
        lm.settle()
        expected = answers(lm)
        path = lm.save_pretrained(tmp_path / "shared")
    assert path == tmp_path / "shared" / "store"
    if kind == "of a folder":
        shutil.rmtree(model)
    shutil.rmtree(tmp_path / "store")
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    (tmp_path / "shared").rename(moved)
    with KNNLM.open(moved / "store") as lm:
        assert (lm.settings.lambda_, lm.settings.k) == (0.4, 8)
        assert answers(lm) == pytest.approx(expected)
        if kind == "transformers":
            assert lm.loaded.tokenizer.original.chat_template == "{{ messages }}"
    (tmp_path / "more.txt").write_text(TEXT)
    result = CliRunner().invoke(main, ["eval", str(moved / "store"), str(tmp_path / "more.txt"), "--json"])
    assert result.exit_code == 0, result.output


def test_what_was_added_is_saved(tmp_path):
    with KNNLM.build(ours(), [("a", "the cat sat. " * 9)], tmp_path / "store") as lm:
        lm.add([("b", "a dog ran. " * 9)])
        with Datastore.open(lm.save_pretrained(tmp_path / "shared")) as saved:
            assert [document.name for document in saved.documents()] == ["a", "b"]
        with pytest.raises(UsageError, match="shared exists already"):
            lm.save_pretrained(tmp_path / "shared")


def test_what_cannot_be_saved_leaves_nothing(tmp_path):
    words = fast(tokenizer("bytes", size=300))
    model = model_of(words)
    with KNNLM.build(model, [("a", TEXT)], tmp_path / "store", tokenizer=words) as lm:
        layer = model.model.layers[0].mlp
        layer.base_layer = nn.Linear(2, 2)  # as PEFT wraps a module
        with pytest.raises(ValueError, match=r"an adapter.*merge_and_unload"):
            lm.save_pretrained(tmp_path / "shared")
        del layer.base_layer
        with torch.no_grad():
            model.lm_head.weight.add_(1.0)
            model.model.layers[0].mlp.up_proj.weight.add_(1.0)
        with pytest.raises(ValueError, match="model weights"):
            lm.save_pretrained(tmp_path / "shared")
        lm.datastore.set_attributes({})
        with pytest.raises(ValueError, match="remembers its model"):
            lm.save_pretrained(tmp_path / "shared")
    with pytest.raises(TypeError, match="save_pretrained: expected a KNNLM with a Datastore"):
        KNNLM(ours(), None).save_pretrained(tmp_path / "shared")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]
