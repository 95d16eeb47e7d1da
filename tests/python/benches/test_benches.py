"""The experiment drivers end to end on a made-up corpus: every system gets a row, and a second run only reads."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from knnlm.model.checkpoint import save_model
from knnlm.model.transformer import TransformerConfig, TransformerLM
from knnlm.text.documents import Document
from knnlm.text.tokenizer import Tokenizer

BENCHES = Path(__file__).parents[3] / "benches"


@pytest.fixture
def setting(tmp_path, monkeypatch):
    """A corpus of sentences that repeat with small changes, an untrained model, and the options of both drivers."""
    monkeypatch.syspath_prepend(str(BENCHES))
    import corpora
    import torch

    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(40)]
    phrases = [" ".join(rng.choice(words, 6)) for _ in range(12)]
    noise = iter(rng.choice(words, 400))  # so that no datastore holds every target
    texts = ["".join(f"{phrase} {next(noise)}\n" for phrase in rng.choice(phrases, 8)) for _ in range(20)]
    documents = [Document(f"d{i}", text) for i, text in enumerate(texts)]
    corpus = corpora.Corpus("toy", documents[:12], documents[12:15], documents[15:], True, 42)
    monkeypatch.setitem(corpora.CORPORA, "toy", lambda _: corpus)
    torch.manual_seed(0)
    tokenizer = Tokenizer.train_words(texts)
    config = TransformerConfig(vocab_size=tokenizer.vocab_size, d_model=16, n_layers=2, n_heads=2, context=16)
    save_model(tmp_path / "model", TransformerLM(config), tokenizer)
    places = {"model": tmp_path / "model", "data": tmp_path, "work": tmp_path / "work", "out": tmp_path / "record"}
    options = [f"--{name}={value}" for name, value in places.items()]
    yield [*options, "--corpus=toy", "--k=16", "--tuning-tokens=80", "--seed=1"], tmp_path / "record"
    for name in ("columns", "corpora", "language_model", "perplexity", "representations", "tables"):
        sys.modules.pop(name, None)


def test_perplexity_driver(setting, capsys):
    options, out = setting
    import perplexity

    more = ["--adapt", "--limit=100", "--learning-rates", "1e-3"]
    assert perplexity.main([*options, *more]) == 0
    record = json.loads((out / "perplexity-toy-adapted.json").read_text())
    rows = {row["system"]: row for row in record["test"]}
    assert set(rows) == {
        "LM",
        "domain 5-gram",
        "LM + domain 5-gram",
        "LM + domain unigram",
        "LM + cache",
        "LM + kNN (quantised)",
        "LM + kNN (quantised) + cache",
        "LM + kNN (quantised) + cache + domain 5-gram",
        "LM + kNN, values shuffled",
        "LM trained on",
    }
    lm = rows["LM"]
    assert lm["perplexity"] == pytest.approx(41, rel=0.2)  # untrained: about uniform over the words
    assert rows["domain 5-gram"]["perplexity"] < 10  # the text is made of twelve phrases
    assert rows["LM + kNN (quantised)"]["ratio_interval"][1] < 0.8
    assert rows["LM + kNN (quantised)"]["perplexity"] < rows["LM + kNN, values shuffled"]["perplexity"]
    exact = {row["system"]: row["perplexity"] for row in record["exact"]}
    assert exact["LM + kNN (exact)"] == pytest.approx(exact["LM + kNN (quantised)"], rel=0.2)
    assert len(lm["document_nll"]) == lm["documents"] == 5
    assert str(out.parent) not in (out / "perplexity-toy-adapted.md").read_text()
    assert str(out.parent) not in json.dumps(record)
    times = {path: path.stat().st_mtime_ns for path in (out.parent / "work").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert perplexity.main([*options, *more]) == 0
    assert times == {path: path.stat().st_mtime_ns for path in (out.parent / "work").rglob("*") if path.is_file()}
    again = json.loads((out / "perplexity-toy-adapted.json").read_text())
    assert [row["document_nll"] for row in again["test"]] == [row["document_nll"] for row in record["test"]]
    assert perplexity.main([*options, "--adapt", "--limit=0", "--learning-rates"]) == 0
    short = json.loads((out / "perplexity-toy-adapted.json").read_text())
    assert [row["system"] for row in short["test"]] == [name for name in rows if name != "LM trained on"]
    assert "exact" not in short


@pytest.mark.parametrize("more", [[], ["--quantised"]])
def test_representations_driver(setting, more):
    options, out = setting
    import representations

    assert representations.main([*options, "--store-tokens=300", "--test-tokens=80", *more]) == 0
    record = json.loads((out / "representations-toy.json").read_text())
    assert len({(row["representation"], row["layer"]) for row in record["rows"]}) == 12
    assert all(row["perplexity"] < 0.9 * record["lm_perplexity"] for row in record["rows"])
    assert record["store_tokens"] < 400


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_recall_driver(tmp_path, monkeypatch, capsys, metric):
    pytest.importorskip("faiss")
    monkeypatch.syspath_prepend(str(BENCHES))
    import recall

    rng = np.random.default_rng(3)
    centres = rng.standard_normal((20, 16))
    keys = (centres[rng.integers(20, size=3000)] + 0.3 * rng.standard_normal((3000, 16))).astype(np.float16)
    np.save(tmp_path / "keys.npy", keys)
    np.save(tmp_path / "queries.npy", keys[::100] + np.float16(0.1))
    options = [f"--keys={tmp_path}/keys.npy", f"--queries={tmp_path}/queries.npy", f"--work={tmp_path}/work"]
    options += [f"--metric={metric}", "--norm-spread=10", "--k=20", "--repeats=1", "--nprobe", "2", "--rerank", "none"]
    more = ["--faiss=IVF8,PQ8x4", "--faiss-train=3000", "--faiss-nprobe", "1", "8", f"--out={tmp_path}/recall-test.md"]
    record = recall.main([*options, *more])
    assert "on 3,000 keys × 30 queries, k = 20" in record["exact"]
    theirs = {f"{row['system']}, nprobe {row['nprobe']}": row for row in record["rows"] if "FAISS" in row["system"]}
    assert set(theirs) == {"FAISS IVF8,PQ8x4, nprobe 1", "FAISS IVF8,PQ8x4, nprobe 8"}
    beside = [row for row in record["rows"] if row["beside"]]
    assert beside
    assert all(row["recall"] >= theirs[row["beside"]]["recall"] for row in beside)
    assert (record["faiss_code_bytes"], theirs["FAISS IVF8,PQ8x4, nprobe 8"]["scanned"]) == (4, 1)
    import records

    assert records.page(tmp_path / "recall-test.json") == (tmp_path / "recall-test.md").read_text()


def test_exact_check_finds_faults(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHES))
    import recall

    keys = np.random.default_rng(4).standard_normal((300, 8)).astype(np.float16)
    keys[200:] = keys[:100]  # ties
    queries = keys[50:60].astype(np.float32)
    found = recall.check_exact(keys, queries, 5, "l2", tmp_path / "right")
    assert found.error < 1e-3
    search = recall.knnlm.Datastore.search
    farthest = int(np.square(keys.astype(np.float32) - queries[0]).sum(1).argmax())

    def without_one(self, *arguments, **options):
        there = search(self, *arguments, **options)
        there.ids[0, 0] = farthest
        return there

    def too_far(self, *arguments, **options):
        there = search(self, *arguments, **options)
        there.distances[3] *= 1.01
        return there

    for fault, why in ((without_one, "missed"), (too_far, "a distance is wrong")):
        monkeypatch.setattr(recall.knnlm.Datastore, "search", fault)
        with pytest.raises(AssertionError, match=why):
            recall.check_exact(keys, queries, 5, "l2", tmp_path / "wrong")


def test_least_nprobe(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHES))
    import recall

    reached = {p: min(1.0, p / 40) for p in range(1, 101)}.__getitem__
    assert [recall.least_nprobe(reached, r, 100) for r in (0.0, 0.5, 0.51, 1.0, 1.1)] == [1, 20, 21, 40, None]


def test_split_columns(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHES))
    import columns

    def passes():
        keys = np.arange(10, dtype=np.float32)[:, None]
        yield 0, np.arange(3), -np.ones(3), {("a", -1): keys[:3]}
        yield 0, np.arange(1), -np.ones(1), {("a", -1): keys[3:4]}
        yield 1, np.arange(6), -np.full(6, 2.0), {("a", -1): keys[4:]}

    capture = ("a", -1)
    split = columns.score(tmp_path, ["x", "y"], [2, 3], 10, [capture], passes)[capture]
    assert split.sums(split.log_p_lm).tolist() == [4.0, 12.0]
    assert [d.tolist() for d in split.documents()] == [[0, 1, 2, 0], [0, 1, 2, 3, 4, 5]]
    assert split.head(1).keys[:, 0].tolist() == [0, 1, 2, 3]
    assert columns.documents_within([4, 6], 4) == 1
    assert columns.documents_within([4, 6], 5) == 2
    assert columns.documents_within([4, 6], 99) == 2
    with pytest.raises(ValueError, match="expected 11 tokens"):
        columns.score(tmp_path / "other", ["x", "y"], [2, 3], 11, [capture], passes)
    sys.modules.pop("columns")
