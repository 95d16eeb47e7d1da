"""Inspection: neighbors in the context of their own document, as arrays, rows and a table."""

from __future__ import annotations

import io

import numpy as np
import pytest
from method import explain
from rich.console import Console
from tiny_lm import Doc, LetterTokenizer, tiny

from knnlm.build.dump import dump
from knnlm.lm.explain import source_contexts
from knnlm.lm.settings import Settings
from knnlm.model.identity import describe
from knnlm.model.key_spec import KeySpec
from knnlm.reference import BruteForceStore
from knnlm.report.rows import in_context, rows
from knnlm.report.table import to_table


@pytest.fixture(scope="module")
def explained():
    loaded = tiny()
    store = BruteForceStore(16)
    dump(loaded, [Doc("first", "abc abd."), Doc("second", "abc\nabe.")], store)
    store.set_attributes(describe(loaded, KeySpec()))
    return explain(loaded, store, Doc("mine", "abc ab"), Settings(0.3, 5.0, 20))


def test_source_contexts_stay_in_their_document(explained):
    store = explained.store
    got = source_contexts(store, [[0, 7, 8], [15, -1, 10]], left=2, right=3)
    text = [["".join(LetterTokenizer().decode([t]) if t >= 0 else "_" for t in row) for row in line] for line in got]
    assert text == [["__abc ", "bd.___", "__abc\n"], ["be.___", "______", "abc\nab"]]


def test_arrays(explained):
    e = explained
    assert len(e) == 6
    assert e.neighbors.ids.shape == e.weights.shape == e.documents.shape == (6, 20)
    np.testing.assert_allclose(e.weights.sum(1), 1)
    hit = (e.neighbors.values == e.tokens[:, None]) & e.neighbors.found
    np.testing.assert_allclose(e.p_knn, (e.weights * hit).sum(1), rtol=1e-6)
    np.testing.assert_allclose(e.p, 0.3 * e.p_knn + 0.7 * e.p_lm, rtol=1e-6)
    assert set(e.documents[:, :16].ravel()) == {0, 1}
    assert (e.documents[:, 16:] == -1).all()
    assert e.document_name(-1) == ""
    assert e.document_name(1) == "second"
    contexts = e.contexts(3, left=2, right=1)
    assert contexts.shape == (6, 3, 4)
    np.testing.assert_array_equal(contexts[:, :, 2], e.neighbors.values[:, :3])


def test_a_part_of_a_text_is_as_in_the_whole_and_no_more_is_searched(explained):
    e, tokenizer = explained, LetterTokenizer()
    asked = []

    class Watched(BruteForceStore):
        def search(self, queries, *arguments, **options):
            asked.append(len(queries))
            return super().search(queries, *arguments, **options)

    loaded = tiny()
    store = Watched(16)
    dump(loaded, [Doc("first", "abc abd."), Doc("second", "abc\nabe."), Doc("mine", "abc ab")], store)
    whole = explain(loaded, store, Doc("mine", "abc ab"), Settings(0.3, 5.0, 20))
    np.testing.assert_allclose(whole.p, e.p)  # its own document is left out
    asked.clear()
    part = explain(loaded, store, Doc("mine", "abc ab"), Settings(0.3, 5.0, 20), start=2, stop=4)
    assert asked == [2]
    assert part.neighbors.ids.shape == (2, 20)
    np.testing.assert_array_equal(part.neighbors.ids, whole.neighbors.ids[2:4])
    np.testing.assert_allclose(part.p, whole.p[2:4], rtol=1e-6)
    assert [(r.position, r.before, r.token, r.after) for r in rows(part, tokenizer)] == [
        (r.position, r.before, r.token, r.after) for r in rows(whole, tokenizer, [2, 3])
    ]
    beyond = explain(loaded, store, Doc("mine", "abc ab"), Settings(0.3, 5.0, 20), start=9, stop=12)
    assert list(rows(beyond, tokenizer)) == []
    with pytest.raises(ValueError, match="at least 0"):
        explain(loaded, store, Doc("mine", "abc ab"), Settings(0.3, 5.0, 20), start=-1)


def test_rows(explained):
    tokenizer = LetterTokenizer()
    found = list(rows(explained, tokenizer, neighbors=2, left=3, right=2))
    assert [(row.before, row.token, row.after) for row in found][:2] == [("", "a", "bc"), ("a", "b", "c ")]
    assert found[4].before == "bc "
    # The same beginning is in the store: nearest, right, in its own text.
    near = found[1].neighbors[0]
    assert (near.before, near.token, near.after, near.document, near.id) == ("a", "b", "c ", "first", 1)
    assert near.right
    assert near.distance < 1e-4
    for row in found:
        assert row.document == "mine"
        assert row.p == pytest.approx(0.3 * row.p_knn + 0.7 * row.p_lm, rel=1e-6)
        shares = [n.share for n in row.neighbors]
        assert shares == sorted(shares, reverse=True)
    assert [row.position for row in rows(explained, tokenizer, [4, 2])] == [4, 2]


def test_table(explained):
    out = io.StringIO()
    table = to_table(rows(explained, LetterTokenizer(), neighbors=2), width=20)
    Console(file=out, width=120, color_system=None).print(table)
    text = out.getvalue()
    assert "second" in text
    assert "p_LM" in text
    assert "⏎" in text  # a line end is shown, not printed


def test_tokens_without_a_text_of_their_own():
    class Bytes:
        """Two tokens make one character."""

        def decode(self, ids):
            return bytes(ids).decode("utf-8", "replace")

        def token_text(self, id):
            return f"<0x{id:02X}>"

    a, b = "é".encode()
    assert in_context(Bytes(), np.array([65, a, b, 66]), 1) == ("A", "<0xC3>", "\ufffdB")
    assert in_context(Bytes(), np.array([-1, 65, 66, -1]), 1) == ("", "A", "B")


def test_no_neighbors_and_no_tokens():
    loaded = tiny()
    e = explain(loaded, BruteForceStore(16), Doc("mine", "ab"), Settings(0.3, 5.0, 2))
    assert np.isnan(e.p_knn).all()
    np.testing.assert_array_equal(e.log_p, e.log_p_lm)
    assert [row.p_knn for row in rows(e, LetterTokenizer())] == [0, 0]
    assert len(explain(loaded, BruteForceStore(16), Doc("mine", ""), Settings(0.3, 5.0, 2))) == 0
    with pytest.raises(ValueError, match="settings_of"):
        explain(loaded, BruteForceStore(16), Doc("mine", "ab"), Settings())
