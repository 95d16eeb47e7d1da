"""kNN-MT on small encoder-decoders: λ = 0 is the model's own beams, λ = 1 reproduces what is stored."""

from __future__ import annotations

import pytest
import torch
from architectures import tiny_model
from seq2seq import FAMILIES, PAIRS, seq2seq, words

from knnlm import Datastore, IdentityError
from knnlm.model.translator import as_translator
from knnlm.mt.build import build_from_pairs
from knnlm.mt.knn_mt import KNNMT
from knnlm.mt.pairs import as_pairs

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


@pytest.fixture
def marian(tmp_path):
    model, tokenizer = seq2seq("Marian"), words()
    KNNMT.build(model, PAIRS, tmp_path / "store", tokenizer=tokenizer).close()
    return model, tokenizer, tmp_path / "store"


def test_what_the_model_cannot_hold_is_left_out_and_said(tmp_path):
    translator = as_translator(seq2seq("Marian"), words())
    pairs = as_pairs([PAIRS[0], ("der Hund", "a dog " * 40), ("eine Katze " * 40, "a cat"), PAIRS[1]])
    result = build_from_pairs(tmp_path / "store", translator, pairs)
    assert [name for name, _ in result.failed] == ["pair 2", "pair 3"]
    assert "at most 64 tokens a side, as the model reads, found 81" in result.failed[0][1]
    with Datastore.open(tmp_path / "store") as store:
        assert [document.name for document in store.documents()] == ["pair 1", "pair 4"]
    with pytest.raises(ValueError, match="none of 2: pair 2"):
        build_from_pairs(tmp_path / "other", translator, pairs[1:3])
    assert not (tmp_path / "other").exists()


def test_pairs_are_added(marian):
    model, tokenizer, store = marian
    with KNNMT(model, store, tokenizer=tokenizer) as mt:
        before = len(mt.datastore)
        assert mt.add([("der Mann", "the man"), PAIRS[0]]).pairs == 2
        assert len(mt.datastore) == before + 3 + 4
        assert mt.datastore.documents()[-1].name == "pair 2 (2)"


def test_wrong_models_languages_and_texts_are_refused(marian):
    model, tokenizer, store = marian
    with pytest.raises(ValueError, match="expected an encoder-decoder"):
        KNNMT(tiny_model("GPT2", vocab_size=60), store, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="no language for a tokenizer of one pair, found 'de_DE'"):
        KNNMT(model, store, tokenizer=tokenizer, source_lang="de_DE")
    with pytest.raises(TypeError, match="needs its tokenizer"):
        KNNMT(model, store)
    with pytest.raises(IdentityError, match="model weights"):
        KNNMT(seq2seq("Marian", seed=1), store, tokenizer=tokenizer)
    with KNNMT(model, store, tokenizer=tokenizer) as mt:
        with pytest.raises(ValueError, match="at most 64 tokens"):
            mt.translate(["ein Hund " * 40])
        with pytest.raises(ValueError, match="text 2 empty"):
            mt.translate(["ein Hund", " "])
        with pytest.raises(TypeError, match=r"write \[text\]"):
            mt.translate("ein Hund")
        assert mt.translate([]) == []
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_the_loss_is_of_the_mixture(marian):
    model, tokenizer, store = marian
    given = tokenizer([PAIRS[1][0]], return_tensors="pt")
    labels = tokenizer(text_target=[PAIRS[1][1]], return_tensors="pt")["input_ids"]
    with KNNMT(model, store, tokenizer=tokenizer, lambda_=0.5) as mt, mt.attached(), torch.no_grad():
        found = model(**given, labels=labels)
    log_p = torch.log_softmax(found.logits[0], -1).gather(1, labels[0][:, None])
    assert float(found.loss) == pytest.approx(-float(log_p.mean()), abs=1e-6)
