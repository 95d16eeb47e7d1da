"""Generating with sources: text, batches, conversations, streams; each token with where it comes from; drafts."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hf_attach import SETTINGS, untouched
from hf_folders import TEXT

import knnlm
from knnlm import KNNLM
from knnlm.hf.drafts import draft
from knnlm.store.neighbors import Neighbors

transformers = pytest.importorskip("transformers")


@pytest.fixture
def memory(model, store, words):
    with knnlm.attach(model, store, tokenizer=words, **SETTINGS) as attached:
        yield attached
    assert untouched(model)


def test_what_is_generated_comes_with_its_sources(memory, words):
    found = memory.generate("the cat sat on the", max_new_tokens=8, do_sample=False)
    (explained,) = found.explanations
    assert found.new_tokens == [explained.tokens.tolist()]
    assert found.text == words.decode(found.new_tokens[0], skip_special_tokens=True)
    np.testing.assert_allclose(explained.p, 0.4 * explained.p_knn + 0.6 * explained.p_lm, atol=1e-6)
    sequence = torch.tensor([found.rows[0]])
    with torch.no_grad():
        log_p = memory.model(sequence).logits[0, explained.start - 1 : -1].double().numpy()
    np.testing.assert_allclose(explained.log_p, log_p[np.arange(len(explained)), explained.tokens], atol=1e-5)
    assert (np.argmax(log_p, -1) == explained.tokens).all()
    told = json.loads(json.dumps(found.to_dict(neighbors=3)))
    (one,) = told["sequences"]
    assert one["text"] == found.text
    token = one["tokens"][0]
    assert token["position"] == explained.start == len(words("the cat sat on the")["input_ids"])
    near = token["neighbors"][0]
    assert near["document"] in ("a", "b")
    info = memory.datastore.documents()[memory.datastore.find_document(near["document"])]
    assert near["id"] == info.start + near["position"]
    assert memory.datastore.values(near["id"], near["id"] + 1)[0] == near["value"]
    assert sum(one["share"] for one in memory_neighbors(explained, 0)) == pytest.approx(1)


def memory_neighbors(explained, t):
    return explained.to_dict(explained.neighbors.k)["tokens"][t]["neighbors"]


def test_several_sequences_and_beams(memory):
    found = memory.generate(["the cat", "and the dog sat on"], max_new_tokens=4, num_beams=3, num_return_sequences=2)
    assert len(found.texts) == len(found.explanations) == 4
    assert all(len(new) <= 4 for new in found.new_tokens)
    assert found.rows[1][: found.starts[1]] == found.rows[0][: found.starts[0]]


def test_a_text_ends_at_its_end(memory, words):
    assert words.eos_token_id is not None
    first = memory.generate("the cat sat", max_new_tokens=6, do_sample=False).new_tokens[0]
    stop = first[2]
    found = memory.generate(["the cat sat", "and the dog"], max_new_tokens=6, do_sample=False, eos_token_id=stop)
    assert found.new_tokens[0] == first[: first.index(stop) + 1]


def test_a_table_and_a_page_show_it(memory, tmp_path):
    from rich.console import Console

    found = memory.generate("the cat sat on the", max_new_tokens=3, do_sample=False)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(found.table())
    assert "p_kNN" in console.export_text()
    page = found.page(tmp_path / "page.html").read_text()
    assert "Of the 3 tokens above" in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_a_conversation_by_the_chat_template(memory, words):
    with pytest.raises((TypeError, ValueError), match="chat"):
        memory.generate(messages=[{"role": "user", "content": "the cat"}], max_new_tokens=2)
    words.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    try:
        talked = memory.generate(messages=[{"role": "user", "content": "the cat"}], max_new_tokens=4, do_sample=False)
        said = memory.generate("the cat\n", max_new_tokens=4, do_sample=False)
        assert talked.new_tokens == said.new_tokens
        many = memory.generate(messages=[[{"role": "user", "content": "the cat"}]] * 2, max_new_tokens=2)
        assert len(many.texts) == 2
    finally:
        words.chat_template = None


def test_a_stream_is_the_text(memory, words):
    shown = []

    class Streamer(transformers.TextStreamer):
        def on_finalized_text(self, text, stream_end=False):
            shown.append(text)

    streamer = Streamer(words, skip_prompt=True, skip_special_tokens=True)
    found = memory.generate("the cat sat on the", max_new_tokens=6, do_sample=False, streamer=streamer)
    assert "".join(shown) == found.text
    with pytest.raises(ValueError, match="num_return_sequences: expected 1 with a streamer"):
        memory.generate("the cat", do_sample=True, num_return_sequences=2, streamer=streamer, max_new_tokens=2)


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({}, TypeError, "expected either inputs or messages"),
        ({"inputs": "the", "messages": []}, TypeError, "expected either inputs or messages"),
        ({"inputs": ""}, ValueError, "expected at least one token"),
        ({"inputs": 7}, TypeError, "expected a text, a list of texts or a tensor of ids, found a int"),
        ({"inputs": "the " * 40}, ValueError, "expected at most 32 tokens with those that are generated, found"),
        ({"inputs": ["the", "cat"], "drafts": True}, ValueError, "drafts: expected one prompt"),
        ({"inputs": "the", "drafts": 4, "num_beams": 2}, ValueError, "drafts: expected one prompt"),
    ],
)
def test_what_cannot_be_generated_is_said(memory, given, error, says):
    with pytest.raises(error, match=says):
        memory.generate(**given, max_new_tokens=4)
    assert memory.attached


def test_text_needs_a_tokenizer(model, store, words):
    with knnlm.attach(model, store, **SETTINGS) as memory:
        with pytest.raises(TypeError, match=r"attach\(model, store, tokenizer=…\)"):
            memory.generate("the cat")
        found = memory.generate(torch.tensor([5, 6, 7]), max_new_tokens=3, do_sample=False)
        assert len(found.new_tokens[0]) == 3
        assert "text" not in found.to_dict()["sequences"][0]
        with pytest.raises(TypeError, match="expected a tokenizer"):
            _ = found.text


@pytest.mark.parametrize("prompt", ["the cat sat on the", "def f(x):", "naïve Café", "zzz"])
@pytest.mark.parametrize("most", [1, 4, 10])
def test_drafts_change_no_greedy_text(memory, prompt, most):
    memory.set(lambda_=0.8)
    plain = memory.generate(prompt, max_new_tokens=12, do_sample=False)
    drafted = memory.generate(prompt, max_new_tokens=12, do_sample=False, drafts=most)
    assert drafted.new_tokens == plain.new_tokens
    assert 0 <= drafted.drafts.accepted <= drafted.drafts.drafted
    assert plain.drafts is None
    assert "_get_candidate_generator" not in vars(memory.module)


def test_drafts_save_passes_where_the_store_has_the_text(model, words, tmp_path):
    KNNLM.build(model, [("a", TEXT)], tmp_path / "store", tokenizer=words)
    with knnlm.attach(model, tmp_path / "store", tokenizer=words, lambda_=0.99, temperature=0.1, k=8) as memory:
        found = memory.generate(TEXT[:20], max_new_tokens=16, do_sample=False, drafts=True)
        assert found.drafts.accepted >= 8
        assert found.drafts.passes <= 8
        plain = memory.generate(TEXT[:20], max_new_tokens=16, do_sample=False)
        assert found.new_tokens == plain.new_tokens


def test_a_draft_is_what_followed_the_neighbors_most():
    values = np.array([3, 4, 5, 6, 3, 4, 9, 9, 3, 7], np.uint32)
    store = SimpleNamespace(
        document_spans=lambda: np.array([[0, 4], [4, 8], [8, 10]]),
        document_of=lambda ids: np.searchsorted([4, 8], ids, "right"),
        values=lambda a, b: values[a:b],
    )

    def found(ids):
        ids = np.array(ids)
        return Neighbors(np.zeros(len(ids), np.float32), values[ids], ids, "l2")

    near = found([0, 4, 8])
    assert draft(store, near, np.array([0.5, 0.3, 0.2]), 3, 5).tolist() == [4, 5, 6]
    assert draft(store, near, np.array([0.2, 0.3, 0.6]), 3, 5).tolist() == [7]
    assert draft(store, near, np.array([0.1, 0.6, 0.2]), 3, 2).tolist() == [4, 9]
    assert draft(store, near, np.array([0.1, 0.6, 0.2]), 8, 5).tolist() == []
    assert draft(store, near, np.array([0.1, 0.6, 0.2]), 3, 0).tolist() == []
