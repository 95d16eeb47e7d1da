"""A model that gives NaN: which document, why, what to do; and one such document never ends the work of hours."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from cli_corpus import run, run_json
from hf_folders import save_folder, tokenizer
from method import evaluate, retrieve
from one_pass_corpus import DIM, KilledError, hashes
from safetensors.torch import load_file, save_file
from tiny_lm import LETTERS, Doc, texts, tiny

from knnlm import KNNLM, Datastore
from knnlm.build import one_pass
from knnlm.build.dump import dump
from knnlm.build.one_pass import build_in_one_pass
from knnlm.evaluate.fit_blend import fit_blend
from knnlm.evaluate.size_curve import size_curve
from knnlm.evaluate.tune import Tuned, save_tuned, tune
from knnlm.lm.combiners import blend_of
from knnlm.lm.distill import targets
from knnlm.lm.retrieved_text import RetrievedText
from knnlm.lm.retriever import Retriever
from knnlm.lm.score import check_scores
from knnlm.lm.settings import Settings
from knnlm.model.key_spec import KeySpec
from knnlm.model.keys import NotFiniteError, iterate
from knnlm.reference import BruteForceStore
from knnlm.store.recall_sample import Truth
from knnlm.system.growing_array import GrowingArray
from knnlm.text.inputs import TokenDocument

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def spoilt(**sizes):
    """A model that gives NaN once it has read a "z"."""
    loaded = tiny(**sizes)
    with torch.no_grad():
        loaded.model.tokens.weight[LETTERS.index("z")] = torch.nan
    return loaded


LONG = Doc("long and odd", "abcd " * 90 + "z" + " abcd" * 20)  # many windows, the first ones sound
ODD = [Doc("first", "abcd abce"), Doc("odd", "abz abc abd"), Doc("mid", "abcd"), LONG, Doc("last", "abcd abcf " * 6)]
SOUND = [document for document in ODD if "z" not in document.text]


@pytest.fixture
def stored():
    loaded = spoilt()
    store = BruteForceStore(16)
    dump(loaded, [*texts(), Doc("more", "abcd abce abcf " * 9)], store)
    return loaded, store


def test_the_document_the_token_and_what_to_do_are_named():
    match = (
        r"document 'odd': the model gave NaN as the probability of token \d; run it in another type.*--dtype float32"
    )
    with pytest.raises(NotFiniteError, match=match):
        list(iterate(spoilt(), ODD))
    with pytest.raises(NotFiniteError, match=r"document 'odd': the model gave NaN or Inf as the key of token \d"):
        list(iterate(spoilt(), ODD, scores=False))
    with pytest.raises(NotFiniteError, match=r"document 'long and odd': .* token 4\d\d"):
        list(iterate(spoilt(), [LONG]))


def test_other_documents_are_as_without_it():
    chunks = list(iterate(spoilt(), ODD, tolerant=True, batch_tokens=48, key_dtype="float32"))
    assert {c.document.name for c in chunks if c.bad} == {"odd", "long and odd"}
    for document in SOUND:
        mine = [c for c in chunks if c.document is document]
        (alone,) = iterate(spoilt(), [document], key_dtype="float32")
        np.testing.assert_allclose(np.concatenate([c.log_p for c in mine]), alone.log_p, atol=1e-5)
        np.testing.assert_allclose(np.concatenate([c.key for c in mine]), alone.key, atol=1e-5)


@pytest.mark.parametrize("use", ["perplexity", "log_probs", "explain"])
def test_every_use_of_one_text_says_it(stored, use):
    lm = KNNLM(*stored)
    with pytest.raises(NotFiniteError, match="the model gave NaN"):
        getattr(lm, use)("abz abc")
    with pytest.raises(NotFiniteError, match="the model gave NaN"):
        getattr(KNNLM(stored[0], None), "perplexity" if use == "explain" else use)("abz abc")
    for one in (lm, KNNLM(*stored, lambda_=0.0)):
        with pytest.raises(NotFiniteError, match="the model gave NaN"):  # after a pool of windows that are sound
            getattr(one, use)(Doc("very long", "abcd " * 900 + "z abcd"))
    with pytest.raises(NotFiniteError, match="the model gave NaN after 3 tokens"):
        lm.generate("abz")


@pytest.mark.parametrize("options", [{}, {"keep_values": True}, {"cache_thetas": ("auto",)}])
def test_scoring_leaves_such_documents_out(stored, options):
    loaded, store = stored
    found = retrieve(loaded, ODD, store, k=4, features=("entropy",), batch_tokens=48, **options)
    expected = retrieve(loaded, SOUND, store, k=4, features=("entropy",), batch_tokens=48, **options)
    assert [name for name, _ in found.failed] == ["odd", "long and odd"]
    assert all("gave NaN" in reason for _, reason in found.failed)
    assert found.names == expected.names == ["first", "mid", "last"]
    for name in ("tokens", "offsets", "words"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    for name in ("log_p_lm", "distances", "match", "values"):
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a, b, atol=1e-4)
    assert set(found.features) == set(expected.features)
    for name, column in found.features.items():
        np.testing.assert_allclose(column, expected.features[name], atol=1e-3)
    result = evaluate(loaded, ODD, store, Settings(0.3, 2.0, 4))
    assert result.failed == found.failed
    assert np.isfinite(result.perplexity)
    json.dumps(result.to_dict(), allow_nan=False)


def test_a_document_that_fails_late_is_none_of_those_whose_copy_was_left_out():
    loaded, store = tiny(), BruteForceStore(16)
    dump(loaded, [*texts(), LONG], store)
    with torch.no_grad():
        loaded.model.tokens.weight[LETTERS.index("z")] = torch.nan
    found = retrieve(loaded, [texts()[4], LONG, Doc("last", "abcd abcf " * 6)], store, k=3, batch_tokens=48)
    assert [name for name, _ in found.failed] == ["long and odd"]
    assert found.excluded_documents == 1


def test_a_model_that_gives_nothing_else_ends_the_work_at_once(stored):
    loaded, store = stored
    with pytest.raises(NotFiniteError, match="document 'odd'"):
        retrieve(loaded, ODD[1:], store, k=4)
    with pytest.raises(NotFiniteError, match="document 'odd'"):
        check_scores(loaded, [Doc("empty", ""), *ODD[1:]], store)
    check_scores(loaded, ODD, store)
    curve = size_curve(loaded, ODD, store, Settings(0.3, 2.0, 4))
    assert np.isfinite(curve.perplexity).all()


def test_nothing_that_is_not_finite_is_tuned_or_saved():
    lm = np.array([-1.0, np.nan, -2.0], np.float32)
    cached = RetrievedText(log_p_lm=lm, distances=np.ones((3, 2), np.float32), match=np.ones((3, 2), bool))
    with pytest.raises(ValueError, match=r"tune: .*found NaN"):
        tune(cached)
    store = BruteForceStore(4)
    with pytest.raises(ValueError, match="expected finite settings to save, found temperature nan"):
        save_tuned(store, Tuned(0.2, float("nan"), 4, 9.0, 9.0, 3))
    save_tuned(store, Tuned(0.2, 1.0, 4, 9.0, float("inf"), 3))
    assert "lm_perplexity" not in store.attributes["tuned"]
    json.dumps(store.attributes, allow_nan=False)
    never = RetrievedText(
        log_p_lm=np.full(3, -800.0, np.float32),
        distances=np.ones((3, 2), np.float32),
        match=np.zeros((3, 2), bool),
    )
    assert tune(never).lm_perplexity == np.inf  # beyond the numbers, and no error
    blend = fit_blend(never.log_p_lm, np.full(3, -900.0))
    assert blend.perplexity == np.inf
    save_tuned(store, tune(never), blends={"cache": blend.to_dict()})
    json.dumps(store.attributes, allow_nan=False)
    assert blend_of(store, True, False).weights == blend.weights


def test_the_curve_of_a_text_that_the_model_never_expected(stored):
    loaded, store = stored
    with torch.no_grad():
        loaded.model.head.weight.mul_(1e6)
    curve = size_curve(loaded, [Doc("a", "qqqq xxxx")], store, Settings(0.3, 2.0, 4), shares=(1.0,))
    assert curve.fixed["lm_perplexity"] == np.inf


def test_an_export_goes_on_and_says_what_it_left_out(stored):
    loaded, store = stored
    retriever = Retriever(store, Settings(k=4))
    with pytest.raises(NotFiniteError, match="document 'odd': the model gave NaN"):
        list(targets(loaded, ODD, retriever, 2.0))
    failed = []
    rows = list(targets(loaded, ODD, retriever, 2.0, failed=failed))
    assert [name for name, _ in failed] == ["odd", "long and odd"]
    sound = [r for r in rows if r["document"] not in dict(failed)]
    for mine, alone in zip(sound, targets(loaded, SOUND, retriever, 2.0), strict=True):
        assert mine["document"] == alone["document"]
        np.testing.assert_array_equal(mine["ids"], alone["ids"])
    with pytest.raises(NotFiniteError, match="'odd'"):
        list(targets(loaded, [ODD[1]], retriever, 2.0, failed=[]))


@pytest.mark.parametrize("limit", [None, 1, 50])
def test_rows_can_be_taken_back(limit):
    array = GrowingArray(limit)
    for start in (0, 3, 6):
        array.append(np.arange(start, start + 3, dtype=np.int64)[:, None])
    array.truncate(4)
    array.truncate(9)
    array.append(np.array([[70], [80]]))
    assert array.finish().ravel().tolist() == [0, 1, 2, 3, 70, 80]
    empty = GrowingArray(limit)
    empty.append(np.ones((2, 2)))
    empty.truncate(0)
    assert empty.finish().shape == (0, 2)


def test_a_dump_goes_on_where_it_may(tmp_path):
    with Datastore.create(tmp_path / "store", dim=16, keep_keys="float32") as store:
        with pytest.raises(NotFiniteError):
            dump(spoilt(), ODD, store)
        assert len(store) == 0
        with pytest.raises(NotFiniteError, match="'odd'"):
            dump(spoilt(), ODD[1:], store, tolerant=True)
        assert len(store) == 0
        with pytest.raises(NotFiniteError, match="'long and odd'"):  # what there was of it is no document
            dump(spoilt(), [LONG], store, tolerant=True, batch_tokens=24)
        assert len(store) == 0
        written = dump(spoilt(), ODD, store, tolerant=True, batch_tokens=24)
        assert [name for name, _ in written.failed] == ["odd", "long and odd"]
        assert [info.name for info in store.documents()] == [document.name for document in SOUND]
        assert written.tokens == len(store) == sum(len(document.text) for document in SOUND)
        assert (written.documents, written.empty_documents) == (3, 0)


def tokens(document):
    return TokenDocument(document.name, tiny().tokenizer.encode(document.text), None, document.text)


def made(path, documents, **options):
    keys = KeySpec(window=24, key_dtype="float32")
    chosen = {"dim": DIM, "attributes": {"a": 1}, "part_tokens": 60, "nlist": 2, **options}
    return build_in_one_pass(path, spoilt(d=DIM), lambda: map(tokens, documents), keys=keys, **chosen)


def spoilt_for_a_worker():
    torch.set_num_threads(1)
    return spoilt(d=DIM)


MANY = [*ODD, *(Doc(f"doc {i}", "abcdefgh "[i % 7 :] * 9) for i in range(12)), Doc("odd end", "azb")]


@pytest.mark.parametrize("keep_keys", [False, True])
def test_a_build_goes_on_and_says_what_it_left_out(tmp_path, keep_keys):
    result = made(tmp_path / "store", MANY, keep_keys=keep_keys)
    assert [name for name, _ in result.failed] == ["odd", "long and odd", "odd end"]
    assert all("gave NaN" in reason for _, reason in result.failed)
    sound = [document for document in MANY if "z" not in document.text]
    with Datastore.open(tmp_path / "store") as store:
        assert [info.name for info in store.documents()] == [document.name for document in sound]
        assert store.info()["deleted_entries"] == 0
        assert store.verify() == []
        chunks = list(iterate(spoilt(d=DIM), sound, window=24, key_dtype="float32"))
        keys = np.concatenate([chunk.key for chunk in chunks])
        ids = np.concatenate([np.arange(info.start, info.stop) for info in store.documents()])
        np.testing.assert_array_equal(store.get(ids).values, np.concatenate([chunk.tokens for chunk in chunks]))
        np.testing.assert_allclose(store.reconstruct(ids), keys, atol=1e-5 if keep_keys else 1.0)


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_what_is_left_out_is_no_neighbor(metric):
    ids = np.array([[3, 7, 5, 9], [1, 2, -1, -1]])
    distances = np.array([[0, 1, 2, 3], [0, 1, 9, 9]], np.float32)
    truth = Truth(metric, np.zeros((2, 4), np.float32), np.zeros((2, 2), np.int64), distances, ids)
    left = truth.without([(5, 8), (2, 3)])
    assert left.ids.tolist() == [[3, 9, -1, -1], [1, -1, -1, -1]]
    nowhere = np.inf if metric == "l2" else -np.inf
    assert left.distances.tolist() == [[0, 3, nowhere, nowhere], [0, nowhere, nowhere, nowhere]]


def test_recall_is_measured_without_what_was_left_out(tmp_path):
    rng = np.random.default_rng(0)
    known = np.array([i for i, letter in enumerate(LETTERS) if letter != "z" and i])
    documents = [TokenDocument(f"doc {i}", rng.choice(known, 300).astype(np.uint32)) for i in range(80)]
    documents[7].tokens[150] = documents[50].tokens[298] = LETTERS.index("z")
    keys = KeySpec(window=24, key_dtype="float32")
    options = {"keys": keys, "dim": DIM, "attributes": {}, "part_tokens": 5000, "threads": 1}
    result = build_in_one_pass(tmp_path / "store", spoilt(d=DIM), lambda: documents, **options)
    assert [name for name, _ in result.failed] == ["doc 7", "doc 50"]
    sound = [document for i, document in enumerate(documents) if i not in (7, 50)]
    build_in_one_pass(tmp_path / "sound", spoilt(d=DIM), lambda: sound, **options)
    with Datastore.open(tmp_path / "store") as store, Datastore.open(tmp_path / "sound") as other:
        recalls = [
            [row["best_recall"] for row in opened.info()["calibration"] if row["k"] > 1]  # of 1 it is a few neighbors
            for opened in (store, other)
        ]
        assert len(store) == 78 * 300
    np.testing.assert_allclose(recalls[0], recalls[1], atol=0.03)


def test_it_has_the_same_bytes_after_a_kill_and_with_workers(tmp_path, monkeypatch):
    plain = made(tmp_path / "plain", MANY, threads=1)
    expected = hashes(tmp_path / "plain")

    def killed_after(name, count):
        calls = 0
        original = getattr(one_pass, name)

        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls > count:
                raise KilledError
            return original(*args, **kwargs)

        return call

    for name, count in (("_commit", 1), ("_commit", 3), ("_remember", 0), ("_left_out", 0)):
        path = tmp_path / f"{name}-{count}"
        with monkeypatch.context() as patched:
            patched.setattr(one_pass, name, killed_after(name, count))
            with pytest.raises(KilledError):
                made(path, MANY, threads=1)
        again = made(path, MANY, threads=1)
        assert again.failed == plain.failed
        assert hashes(path) == expected
    path = tmp_path / "after"
    with monkeypatch.context() as patched:
        patched.setattr(Datastore, "compact", lambda *_, **__: (_ for _ in ()).throw(KilledError))
        with pytest.raises(KilledError):
            made(path, MANY, threads=1)
    assert made(path, MANY, threads=1).failed == plain.failed
    with Datastore.open(path) as store, Datastore.open(tmp_path / "plain") as other:
        assert store.info()["calibration"] == other.info()["calibration"]
        np.testing.assert_array_equal(store.values(0, store.next_id), other.values(0, other.next_id))
    made(tmp_path / "workers", MANY, threads=1, workers=1, load=spoilt_for_a_worker)
    assert hashes(tmp_path / "workers") == expected


def test_a_build_with_a_broken_model_ends_with_its_sample(tmp_path):
    with pytest.raises(NotFiniteError, match="the model gave NaN or Inf as the key"):
        made(tmp_path / "store", [document for document in MANY if "z" in document.text], nlist=1)


def test_a_build_whose_every_document_fails_says_so(tmp_path):
    for _ in range(2):
        with pytest.raises(NotFiniteError, match="'long and odd': the model gave NaN"):
            made(tmp_path / "store", [LONG], batch_tokens=24)


def test_a_token_that_the_model_does_not_have_is_found_before_the_model_runs(tmp_path):
    loaded = spoilt(d=DIM)
    loaded.model.get_input_embeddings = lambda: loaded.model.tokens
    loaded.model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    documents = [tokens(Doc("fine", "abcd")), TokenDocument("odd", np.array([1, 30], np.uint32))]
    with pytest.raises(ValueError, match="document 'odd': token 30 is outside the model's vocabulary of 30"):
        build_in_one_pass(
            tmp_path / "s", loaded, lambda: documents, keys=KeySpec(window=24), dim=DIM, attributes={}, nlist=1
        )


@pytest.fixture
def folder(tmp_path):
    """A Hugging Face model that gives NaN once it has read a tilde."""
    words = tokenizer("bytes")
    path = save_folder(tmp_path / "model", words)
    weights = load_file(path / "model.safetensors")
    weights["model.embed_tokens.weight"][words.token_to_id("~")] = torch.nan
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    return path


def test_commands_name_the_document_and_go_on(folder, tmp_path):
    books = tmp_path / "books"
    books.mkdir()
    for i in range(4):
        (books / f"{i}.txt").write_text("the cat sat on the mat. " * (5 + i))
    (books / "1.txt").write_text("the cat ~ sat on the mat. " * 9)
    sound, odd = tmp_path / "sound.txt", tmp_path / "odd.txt"
    sound.write_text("the dog sat on the cat. " * 9)
    odd.write_text("the ~ dog sat")
    store = tmp_path / "store"
    for command in ("dump", "build"):
        done = run(command, books, "--model", folder, "--out", tmp_path / command, "--threads", 1)
        assert "1.txt': the model gave NaN" in done.stderr
        assert run_json("info", tmp_path / command)["documents"] == 3
    run("build", books, "--model", folder, "--out", store, "--keep-keys", "--threads", 1)
    found = run_json("eval", store, sound, odd, code=1)
    assert [name for name, _ in found["failed"]] == ["odd.txt"]
    assert found["perplexity"] == run_json("eval", store, sound)["perplexity"]
    assert "left out: document 'odd.txt': the model gave NaN" in run("eval", store, sound, odd, code=1).stderr
    told = run("eval", store, odd, code=1).stderr
    assert "knnlm eval: document 'odd.txt': the model gave NaN" in told
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("knnlm.evaluate.tune_store.ngram_of", lambda *_: pytest.fail("it worked before it asked"))
        told = run("tune", store, odd, sound, "--ngram", "--no-plots", code=1).stderr
    assert "document 'odd.txt': the model gave NaN" in told
    tuned = run_json("tune", store, sound, odd, "--plots", tmp_path / "plots")
    assert [name for name, _ in tuned["failed"]] == ["odd.txt"]
    assert "tuned" in run_json("info", store)["attributes"]
    told = run("export", store, odd, sound, "--out", tmp_path / "out.parquet", code=1).stderr
    assert "left out: document 'odd.txt': the model gave NaN" in told
    assert (tmp_path / "out.parquet").exists()
    for command in (("generate", store, "--prompt", "the ~"), ("inspect", store, "--string", "the ~ dog")):
        assert "the model gave NaN" in run(*command, code=1).stderr
    before = run_json("info", store)["generation"]
    assert "the model gave NaN" in run("add", store, odd, code=1).stderr
    assert run_json("info", store)["generation"] == before
    added = run_json("add", store, sound, odd)
    assert ([name for name, _ in added["failed"]], added["added"]) == (["odd.txt"], 1)
    assert run_json("info", store)["documents"] == 4
    (books / "2.txt").write_text("the ~ cat")  # what is changed is not lost for a text that cannot be stored
    new = books / "0.new.txt"
    new.write_text("the mat sat. " * 9)
    before = run_json("info", store)["generation"]
    assert "2.txt': the model gave NaN" in run("add", store, books, code=1).stderr
    assert run_json("info", store)["generation"] == before
    (books / "2.txt").write_text("the cat. " * 9)
    added = run_json("add", store, books)
    assert (added["added"], added["changed"], [name.rpartition("/")[2] for name, _ in added["failed"]]) == (
        1,
        1,
        ["1.txt"],
    )
