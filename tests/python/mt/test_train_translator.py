"""A translation model trained here: learns, is kept at its best, loads again, and carries a store."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from seq2seq import PAIRS

from knnlm.cli import main
from knnlm.model.translator import load_translator
from knnlm.mt.knn_mt import KNNMT
from knnlm.mt.pairs import as_pairs
from knnlm.mt.train import TranslatorSizes, TranslatorTraining, train_translator
from knnlm.system.usage import UsageError

pytest.importorskip("transformers")

SIZES = TranslatorSizes(vocab_size=320, d_model=32, layers=1, heads=2, d_ff=64, context=48, dropout=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("translator") / "model"
    pairs = as_pairs(PAIRS)
    training = TranslatorTraining(max_steps=60, learning_rate=3e-3, warmup=10, valid_steps=20, batch_tokens=256)
    result = train_translator(path, pairs, pairs, sizes=SIZES, training=training)
    assert result.steps == 60
    assert [step for step, _ in result.curve] == [20, 40, 60]
    assert result.curve[-1][1] < result.curve[0][1] / 2
    with pytest.raises(UsageError, match="exists already"):
        train_translator(path, pairs, pairs, sizes=SIZES, training=training)
    return path


def test_the_folder_translates_with_a_store(folder, tmp_path):
    with KNNMT.build(folder, PAIRS, tmp_path / "store", keep_keys="float32") as mt:
        tuned = mt.tune(PAIRS)
        assert tuned.perplexity < tuned.lm_perplexity
        assert mt.datastore.attributes["tuned"]["lambda_"] == tuned.lambda_
    (tmp_path / "de.txt").write_text("".join(f"{source}\n" for source, _ in [*PAIRS[:2], ("", "")]))
    (tmp_path / "en.txt").write_text("".join(f"{target}\n" for _, target in [*PAIRS[:2], ("", "")]))
    shown = CliRunner().invoke(main, ["translate", str(tmp_path / "store"), str(tmp_path / "de.txt")])
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.splitlines() == [PAIRS[0][1], PAIRS[1][1], ""]
    arguments = [
        "translate",
        str(tmp_path / "store"),
        str(tmp_path / "de.txt"),
        "--reference",
        str(tmp_path / "en.txt"),
    ]
    scored = CliRunner().invoke(main, arguments)
    assert "BLEU" in scored.stdout
    assert CliRunner().invoke(main, [*arguments, "--without-store", "--json"]).exit_code == 0


def test_it_loads_as_it_was_written(folder):
    a, b = load_translator(folder), load_translator(folder)
    assert a.fingerprint == b.fingerprint
    assert a.written(["a dog runs"])[0][-1] == a.end
    assert a.tokenizer.decode(a.written(["a dog runs"])[0]) == "a dog runs"


def test_no_pairs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="pairs to train on"):
        train_translator(tmp_path / "model", [], [], sizes=SIZES)
    long = as_pairs([("a " * 100, "b")])
    with pytest.raises(ValueError, match="at most 48 tokens"):
        train_translator(tmp_path / "model", long, long, sizes=SIZES)
    assert not (tmp_path / "model").exists()
