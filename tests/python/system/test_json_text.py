"""json_text.py and rows.py: what JSON does not have is refused by its place, or mended with a word about it."""

from __future__ import annotations

import datetime
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knnlm import Datastore
from knnlm.system.json_text import DEEPEST, TooDeepError, from_json, mended, to_json
from knnlm.text.documents import ReadReport, read_documents

NAN = float("nan")


def nested(levels, inner=0):
    for _ in range(levels):
        inner = [inner]
    return inner


circle: dict = {}
circle["self"] = [circle]

REFUSED = {
    "nan": ({"a": NAN}, r"metadata\.a: .*found NaN"),
    "inf": ({"a": {"b": [1, -math.inf]}}, r"metadata\.a\.b\[1\]: .*found an infinite number"),
    "numpy nan": ({"a": np.float64("nan")}, r"metadata\.a: .*found NaN"),
    "surrogate": ({"a": "half \ud83d"}, r"metadata\.a: .*found a lone surrogate"),
    "surrogate key": ({"\ud83d": 1}, "found a lone surrogate"),
    "digits": ({"a": 10**5000}, r"metadata\.a: .*found an integer of more than 4,299 digits"),
    "bytes": ({"a": b"x"}, r"metadata\.a: .*found bytes"),
    "date": ({"a": datetime.date(2020, 1, 2)}, r"metadata\.a: .*found date"),
    "int key": ({"a": {1: 2}}, r"metadata\.a: .*found a key that is no text, 1"),
    "numpy": ({"a": np.float32(1)}, r"metadata\.a: .*found float32"),
    "several": ({"a": NAN, "b": NAN, "c": NAN}, r"metadata\.a: .*and 2 more"),
    "deep": ({"a": nested(DEEPEST)}, "at most 100 levels"),
    "circle": (circle, "at most 100 levels"),
    "list": ([1], "expected a dictionary, found list"),
    "text": ("x", "expected a dictionary, found str"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_json_does_not_have_is_refused_by_its_place(name, tmp_path):
    value, message = REFUSED[name]
    with Datastore.create(tmp_path / "store", dim=2, attributes={"kept": 1}) as store:
        with pytest.raises(ValueError, match=f"{message}.*nothing was changed"):
            store.add(np.zeros((1, 2)), [0], document="d", metadata=value)
        with pytest.raises(ValueError, match=message.replace("metadata", "attributes")):
            store.set_attributes(value)
        with pytest.raises(ValueError, match=message.replace("metadata", "attributes")):
            Datastore.create(tmp_path / "other", dim=2, attributes=value)
        assert not (tmp_path / "other").exists()
        store.add(np.zeros((1, 2)), [0], document="d", metadata={"deep": nested(DEEPEST - 1), "big": 10**4000})
        assert len(store) == 1
        assert store.attributes == {"kept": 1}
        assert store.documents()[0].metadata == {"deep": nested(DEEPEST - 1), "big": 10**4000}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "expected an object, found list"),
        ("{", "expected JSON, found"),
        ('{"a": ' + "[" * 100_000, "at most 100 levels"),
        ('{"a": ' + "[" * 300 + "]" * 300 + "}", "at most 100 levels"),
        ('{"a": ' + "9" * 100_000 + "}", "digits"),
    ],
)
def test_json_of_others_is_an_error_that_names_what_it_is(text, message):
    with pytest.raises(ValueError, match=f"^store: attributes: .*{message}"):
        from_json(text, "store: attributes")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5)
    | st.binary(max_size=3) | st.dates() | st.datetimes(),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner)
    | st.dictionaries(st.text(st.characters(), max_size=3) | st.integers(), inner, max_size=4),
)  # fmt: skip


@given(st.dictionaries(st.text(st.characters(), max_size=3), anything, max_size=4))
@settings(deadline=None)
def test_what_is_mended_is_json_and_what_is_json_is_left_alone(value):
    found, changes = mended(value, "")
    text = to_json(found, "x")
    assert json.loads(text) == json.loads(json.dumps(found))
    if not changes:
        assert json.loads(text) == json.loads(json.dumps(value))
    assert mended(found, "")[1] == []


def test_too_deep_is_an_error_and_not_a_recursion():
    with pytest.raises(TooDeepError):
        mended({"a": nested(100_000)}, "")


ROWS = [
    ('{"text": "a", "score": NaN, "all": [1, Infinity, -Infinity]}', {"score": None, "all": [1, None, None]}),
    ('{"text": "b", "score": 1e999, "big": ' + "9" * 4000 + "}", {"score": None, "big": 10**4000 - 1}),
    ('{"text": "c", "half": "\\ud83d", "\\ud83d": 1}', {"half": "\ufffd", "\ufffd": 1}),
    ('{"text": "d", "id": 1, "id": 2, "in": {"x": 1, "x": 3}}', {"id": 2, "in": {"x": 3}}),
    ('{"text": "e", "deep": ' + "[" * 99 + "]" * 99 + "}", {"deep": nested(98, [])}),
    ('{"text": "f"}', None),
    (
        '{"text": "g", "digits": [' + "9" * 5000 + ', 7], "n": ' + "9" * 4000 + "}",
        {"digits": [None, 7], "n": 10**4000 - 1},
    ),
    (
        '{"text": "h", "\\ud83d": 1, "\\ud83c": 2, "\ufffd": 3}',
        {"\ufffd\ufffd": 1, "\ufffd\ufffd\ufffd": 2, "\ufffd": 3},
    ),
    ('{"text": "i\\u0000\\u0000i"}', None),
]
SKIPPED = [
    '{"text": "x", "deep": ' + "[" * 600 + "]" * 600 + "}",
    '{"text": "x", "deep": ' + "[" * 100_000 + "]" * 100_000 + "}",
    '{"text": NaN}',
    "NaN",
    '"text"',
]


def test_rows_with_what_json_does_not_have_are_read_and_told(tmp_path):
    (tmp_path / "b.jsonl").write_text("".join(line + "\n" for line, _ in ROWS) + "".join(x + "\n" for x in SKIPPED))
    report = ReadReport()
    documents = list(read_documents([tmp_path], report=report))
    texts = [*"abcdefgh", "i\ufffd\ufffdi"]
    assert [(d.text, d.metadata) for d in documents] == [(texts[i], facts) for i, (_, facts) in enumerate(ROWS)]
    assert report.notes == [
        ("b.jsonl#1", "score: NaN in the metadata, now null"),
        ("b.jsonl#1", "all[]: an infinite number in the metadata, now null"),
        ("b.jsonl#2", "score: an infinite number in the metadata, now null"),
        ("b.jsonl#3", "half: a lone surrogate in the metadata, now U+FFFD"),
        ("b.jsonl#3", "the key '\\ud83d': a lone surrogate in the metadata, now U+FFFD"),
        ("b.jsonl#4", "x: given more than once, the last one is kept"),
        ("b.jsonl#4", "id: given more than once, the last one is kept"),
        ("b.jsonl#7", "digits[]: an integer of more than 4,299 digits in the metadata, now null"),
        ("b.jsonl#8", "the key '\\ud83c': a lone surrogate in the metadata, now U+FFFD"),
        ("b.jsonl#9", "2 zero characters in the text replaced by U+FFFD"),
    ]
    assert [name for name, _ in report.skipped] == [f"b.jsonl#{i}" for i in range(10, 15)]
    for document in documents:
        to_json(document.metadata or {}, "what the store would get")


def test_the_same_change_in_many_rows_is_one_note(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"text": "x", "score": NaN, "v": [NaN, NaN]}\n' * 5000)
    report = ReadReport()
    assert len(list(read_documents([tmp_path], report=report))) == 5000
    assert report.noted() == [
        ("b.jsonl#1", "score: NaN in the metadata, now null (and in 4,999 other rows)"),
        ("b.jsonl#1", "v[]: NaN in the metadata, now null (and in 4,999 other rows)"),
    ]
    assert "note: b.jsonl#1: score: NaN in the metadata, now null (and in 4,999 other rows)" in report.lines()


def test_rows_of_a_data_set_with_what_json_does_not_have(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {
        "text": ["one", "two"],
        "score": [NAN, 1.5],
        "day": [datetime.date(2020, 1, 2)] * 2,
        "raw": [b"\xff", b"x"],
        "list": [[1.0, math.inf], []],
        "when": [datetime.datetime(2020, 1, 2, 3), None],
    }
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "saved"))
    report = ReadReport()
    found = [d.metadata for d in read_documents([f"hf:{tmp_path}/saved"], report=report)]
    assert found == [
        {"score": None, "day": "2020-01-02", "list": [1.0, None], "when": "2020-01-02T03:00:00"},
        {"score": 1.5, "day": "2020-01-02", "list": [], "when": None},
    ]
    assert {what.split(":")[0] for _, what in report.notes} == {"score", "day", "raw", "list[]", "when"}
    assert ("saved/train#1", "raw: bytes in the metadata, now left out (and in 1 other row)") in report.noted()


def test_a_data_set_that_breaks_off_is_told(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")

    class Broken:
        column_names = ("text",)

        def __iter__(self):
            yield {"text": "one"}
            raise RuntimeError("the shard is damaged")

    (tmp_path / "set").mkdir()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: Broken())
    report = ReadReport()
    assert [d.text for d in read_documents([f"hf:{tmp_path}/set"], report=report)] == ["one"]
    assert report.skipped == [("set/train", "cannot be read beyond row 1: RuntimeError: the shard is damaged")]
    assert report.unread()("set/train#2")
