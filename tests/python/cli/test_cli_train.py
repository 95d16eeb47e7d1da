"""`knnlm train`: it says how well it does on the way, and what of the validation text it could not read."""

from pathlib import Path

from cli_corpus import run, run_json, sentence

TRAIN = ("--steps", 1, "--vocab-size", 300, "--d-model", 16, "--layers", 1, "--heads", 2, "--context", 32,
         "--batch-tokens", 64, "--threads", 1)  # fmt: skip


def test_validation_is_said_and_skipped_validation_text_is_reported(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid" / "a.txt").write_text(sentence(3, 40))
    (tmp_path / "valid" / "b.bin").write_bytes(b"\0binary")
    given = ("train", texts / "books" / "0.txt", "--valid", tmp_path / "valid", *TRAIN, "--out")
    said = run(*given, tmp_path / "one").stderr
    assert "validation perplexity" in said.split("after 1 steps")[0]
    assert "skipped: b.bin" in said
    found = run_json(*given, tmp_path / "two")
    assert [name for name, _ in found["read_valid"]["skipped"]] == ["b.bin"]


def test_plots_of_the_default_folder_are_replaced(texts: Path, store: Path) -> None:
    given = ("tune", store, texts / "valid.txt", "--k", 8)
    plots = [Path(path) for path in run_json(*given)["plots"]]
    assert [path.parent for path in plots] == [store.with_name("store-tuning")] * 4
    plots[0].write_text("old")
    (plots[0].parent / "mine.svg").write_text("mine")
    assert [Path(path) for path in run_json(*given)["plots"]] == plots
    assert plots[0].read_text() != "old"
    known = run_json("tune", store, texts / "books" / "0.txt", "--k", 8)[
        "plots"
    ]  # it is in the store: no curve of sizes
    assert sorted(path.name for path in plots[0].parent.iterdir()) == sorted(
        [*(Path(p).name for p in known), "mine.svg"]
    )
    assert len(known) == 3


def test_plots_of_an_earlier_tuning_are_kept(texts: Path, store: Path, tmp_path: Path) -> None:
    given = ("tune", store, texts / "valid.txt", "--k", 8, "--max-documents", 1, "--plots", tmp_path / "plots")
    plots = [Path(path) for path in run_json(*given)["plots"]]
    plots[0].write_text("mine")
    assert "--overwrite" in run(*given, code=2).stderr
    assert plots[0].read_text() == "mine"
    run(*given, "--no-plots")
    assert plots[0].read_text() == "mine"
    run(*given, "--overwrite")
    assert plots[0].read_text() != "mine"
