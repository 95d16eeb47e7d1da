"""The demo with a tiny budget: it ends, its numbers hang together, and it can be run again."""

import io
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from knnlm.cli import main
from knnlm.demo.report import render
from knnlm.demo.result import CaseResult, Curve, DemoResult, as_report, as_terminal
from knnlm.demo.samples import first_tokens
from knnlm.demo.stdlib_text import language_reference
from knnlm.store.datastore import Datastore
from knnlm.text.documents import Document
from knnlm.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "out"


@pytest.fixture(scope="module")
def printed(folder: Path) -> str:
    arguments = ["demo", "--out", str(folder), "--steps", "2", "--scored", "200", "--documents", "2", "--threads", "1"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def result(folder: Path, printed: str) -> dict[str, Any]:
    return dict(json.loads((folder / "result.json").read_text()))


def test_it_ends_with_table_neighbors_and_report(folder: Path, printed: str) -> None:
    for shown in ("language model alone", "quantised", "exact", "shuffled", "5-gram", "λ", "bytes per entry", "tok/s"):
        assert shown in printed
    assert "text, next token marked" in printed
    assert str(folder / "report.html") in printed.replace("\n", "")
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 8
    assert page.count('class="token"') == 10


def test_the_numbers_hang_together(folder: Path, result: dict[str, Any]) -> None:
    for name, store in (("in_domain", "store-docstrings"), ("adapted", "store-reference")):
        case = result[name]
        assert 150 <= case["tokens"] <= 210
        assert all(1 < value < 5000 for value in case["perplexity"].values())
        assert all(value > 0 for value in case["tokens_per_second"].values())
        assert case["change"]["quantised"] == pytest.approx(
            case["perplexity"]["quantised"] / case["perplexity"]["lm"] - 1
        )
        assert 0 <= case["lambda_"] <= 1
        assert set(case["curves"]) == {"lambda_", "temperature", "k", "size"}
        lambdas = dict(zip(case["curves"]["lambda_"]["x"], case["curves"]["lambda_"]["y"], strict=True))
        assert lambdas[0.0] == pytest.approx(case["valid_lm"])
        assert case["curves"]["size"]["x"] == sorted(case["curves"]["size"]["x"])
        with Datastore.open(folder / store) as opened:
            assert len(opened) == case["entries"] == case["curves"]["size"]["x"][-1]
            assert opened.verify() == []
            assert opened.attributes["tuned"]["lambda_"] == case["lambda_"]
            assert opened.attributes["tuned"]["k"] == case["k"]
        parts = case["bytes_per_entry"]
        assert sum(value for key, value in parts.items() if key != "total") == pytest.approx(parts["total"])


def test_its_stores_know_their_model(folder: Path, printed: str) -> None:
    with Datastore.open(folder / "store-reference") as opened:
        assert opened.attributes["model"]["source"] == "../model"
    arguments = ["generate", str(folder / "store-reference"), "--prompt", "The", "--max-new-tokens", "3"]
    generated = CliRunner().invoke(main, arguments)
    assert generated.exit_code == 0, generated.stderr
    assert generated.stdout.startswith("The")


def test_examples_show_where_a_prediction_comes_from(result: dict[str, Any]) -> None:
    for name in ("in_domain", "adapted"):
        for token in result[name]["examples"]:
            assert 1 <= len(token["neighbors"]) <= 5
            shares = [near["share"] for near in token["neighbors"]]
            assert shares == sorted(shares, reverse=True)
            right = sum(near["share"] for near in token["neighbors"] if near["right"])
            assert right <= token["p_knn"] + 1e-6
            mixed = result[name]["lambda_"] * token["p_knn"] + (1 - result[name]["lambda_"]) * token["p_lm"]
            assert token["p"] == pytest.approx(mixed, rel=1e-4)


def test_it_is_not_run_over_its_own_output(folder: Path, printed: str) -> None:
    refused = CliRunner().invoke(main, ["demo", "--out", str(folder)])
    assert refused.exit_code == 2
    assert "--overwrite" in refused.stderr


def test_ctrl_c_leaves_no_half_written_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Datastore, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Datastore, "build", interrupted)
    monkeypatch.setattr("knnlm.demo.run.docstrings", language_reference)  # quicker to read
    arguments = ["demo", "--out", str(tmp_path / "out"), "--steps", "1", "--scored", "200", "--documents", "2"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 130
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["demo.json", "model"]


def test_overwrite_removes_only_what_a_demo_wrote(folder: Path, printed: str, tmp_path: Path) -> None:
    mine = tmp_path / "model"
    mine.mkdir()
    (mine / "model.safetensors").write_bytes(b"mine")
    refused = CliRunner().invoke(main, ["demo", "--out", str(tmp_path), "--overwrite"])
    assert refused.exit_code == 2
    assert "no demo wrote it" in refused.stderr
    assert (mine / "model.safetensors").read_bytes() == b"mine"
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "store-reference" / "thesis.txt").write_text("years of work")
    refused = CliRunner().invoke(main, ["demo", "--out", str(copy), "--overwrite"])
    assert refused.exit_code == 2
    assert "thesis.txt" in refused.stderr
    assert sorted(p.name for p in (copy / "model").iterdir()) == sorted(p.name for p in (folder / "model").iterdir())


def test_the_scored_text_is_of_many_documents_and_as_long_as_asked() -> None:
    tokenizer = Tokenizer.train_bpe(["one two three four five six"] * 3, 260)
    documents = [Document(str(number), "one two three four five six " * (number % 7)) for number in range(40)]
    whole = sum(len(tokenizer.encode(document.text)) for document in documents)
    for count in (1, 30, 300, whole):
        chosen = first_tokens(documents, tokenizer, count)
        assert sum(len(tokenizer.encode(document.text)) for document in chosen) == count
        assert len(chosen) >= min(10, count)
        texts = {document.name: document.text for document in documents}
        assert all(texts[document.name].startswith(document.text) for document in chosen)
    assert first_tokens(documents, tokenizer, 2 * whole) == [document for document in documents if document.text]


def case(**perplexity: float) -> CaseResult:
    return CaseResult(
        "c", "", 10, 1, 10, 1, perplexity, {}, 0.5, 1.0, 8, {"total": 1.0}, 0.0, 100.0, {"k": Curve([1], [1])}, {}
    )


def test_a_training_that_was_cut_is_said_everywhere() -> None:
    good = case(lm=100, exact=60, quantised=61, shuffled=90, ngram=120)
    whole = DemoResult(good, good, {}, 1.0, steps=900, steps_asked=900)
    cut = replace(whole, steps=59)
    facts = cut.as_json()
    assert (facts["steps"], facts["steps_asked"], facts["training_cut"]) == (59, 900, True)
    assert all(check["holds"] and check["cut"] for check in facts["checks"])
    page, drawn = render(as_report(cut)), Console(width=100, file=io.StringIO())
    drawn.print(as_terminal(cut))
    for text in (page, " ".join(drawn.file.getvalue().split())):
        assert "59 of 900 steps" in text
        assert "a store helps a weak model more" in text
        assert text.count("yes, of a cut training") == len(cut.checks())
    assert page.index("59 of 900 steps") < page.index("A small decoder")
    assert not whole.as_json()["training_cut"]
    assert "cut" not in render(as_report(whole)).split("</style>")[1]


def test_claims_hold_only_where_they_do() -> None:
    good = case(lm=100, exact=60, quantised=61, shuffled=90, ngram=120)
    result = DemoResult(good, good, {}, 1.0)
    assert all(check.holds for check in result.checks())
    weak = case(**{**good.perplexity, "ngram": 99})
    assert all(check.holds for check in replace(result, in_domain=weak).checks())  # a comparison, no claim
    facts = as_report(replace(result, in_domain=weak)).cases[0].facts
    assert facts["model alone, and a 5-gram of its text"] == "100.0, 99.0: +1.0 %"
    for change in (
        {"quantised": 62},
        {"exact": 80, "quantised": 80},
        {"shuffled": 80},
        {"quantised": 101, "exact": 101, "shuffled": 100},
    ):
        bad = case(**{**good.perplexity, **change})
        failed = [check.claim for check in replace(result, in_domain=bad, adapted=bad).checks() if not check.holds]
        assert failed, change
    assert math.isclose(good.gain("quantised"), -0.39)
