"""kNN-MT on small encoder-decoders: λ = 0 is the model's own beams, λ = 1 reproduces what is stored."""

from __future__ import annotations

import pytest
import torch
from seq2seq import FAMILIES, PAIRS, seq2seq, words

from knnlm import Datastore
from knnlm.mt.knn_mt import KNNMT

pytest.importorskip("transformers")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    model, tokenizer = seq2seq(request.param), words()
    store = tmp_path_factory.mktemp(request.param) / "store"
    with KNNMT.build(model, PAIRS, store, tokenizer=tokenizer, keep_keys="float32", threads=1):
        pass
    return model, tokenizer, store


def test_an_entry_for_each_target_token(family):
    _, tokenizer, store = family
    with Datastore.open(store) as opened:
        documents = opened.documents()
        assert len(documents) == len(PAIRS)
        for (source, target), document in zip(PAIRS, documents, strict=True):
            stored = opened.values(document.start, document.stop).tolist()
            assert stored == [*tokenizer(target, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            assert document.metadata["source"] == source


def test_no_weight_is_the_models_own_beams(family):
    model, tokenizer, store = family
    sources = [source for source, _ in PAIRS[:3]]
    given = tokenizer(sources, return_tensors="pt", padding=True)
    options = {"num_beams": 3, "max_new_tokens": 9, "output_scores": True, "return_dict_in_generate": True}
    expected = model.generate(**given, **options)
    with KNNMT(model, store, tokenizer=tokenizer, lambda_=0.0) as mt:
        with mt.attached():
            found = model.generate(**given, **options)
        assert mt.translate(sources, num_beams=3, max_new_tokens=9) == mt.translate_alone(
            sources, num_beams=3, max_new_tokens=9
        )
    assert torch.equal(found.sequences, expected.sequences)
    assert torch.equal(found.sequences_scores, expected.sequences_scores)
    assert all(torch.equal(a, b) for a, b in zip(found.scores, expected.scores, strict=True))


def test_all_weight_reproduces_what_is_stored(family):
    model, tokenizer, store = family
    with KNNMT(model, store, tokenizer=tokenizer, lambda_=1.0, k=1, exact=True, temperature=1e-3) as mt:
        found = mt.translate([source for source, _ in PAIRS], num_beams=1, max_new_tokens=20)
    assert found == [target for _, target in PAIRS]
