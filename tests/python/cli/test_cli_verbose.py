"""`--verbose`: what is read, loaded, opened and used, and where it comes from."""

import re
from pathlib import Path

from cli_corpus import run


def test_eval_says_what_it_works_with(texts: Path, store: Path) -> None:
    run("tune", store, texts / "valid.txt", "--k", 16, "--no-plots")
    told = run("eval", store, texts / "test.txt", "--lambda", 0.125, "-v", "--device", "cpu").stderr
    for line in (
        r"store \S+/store: [\d,]+ entries in 2 documents, dimension 16, generation \d+, index of \d+ lists?, raw keys"
        r" kept: float16",
        r"model model from \S+: [\d,]+ parameters, float32, on cpu, context 32; loaded in \d+\.\d s",
        r"settings: λ 0\.125 \(given\), T \S+ \(tuned\), k \d+ \(tuned\), nprobe the store's own \(default\), .*",
        r"keys: ffn-input of layer -1; windows of 32 tokens, each token sees 16 before it at least; .*",
        r"\S+test\.txt: read 1 document, [\d,]+ bytes of text",
    ):
        assert re.search(rf"^\d+\.\d s knnlm: {line}$", told, re.M), f"{line}\n{told}"
    assert told.count("knnlm: keys: ") == 1  # asked for several times
    assert "settings: " not in run("eval", store, texts / "test.txt").stderr


def test_all_that_was_skipped_is_named(texts: Path, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.txt").write_text("the store keeps a key")
    for number in range(25):
        (folder / f"{number:02}.bin").write_bytes(b"\0binary")
    given = ("dump", folder, "--model", model, "--out", tmp_path / "store")
    told = run(*given, "-v").stderr
    assert all(f"skipped: {number:02}.bin: " in told for number in range(25))
    assert "24.bin" not in run(*given, "--overwrite").stderr


def test_train_and_build_say_what_they_work_on(texts: Path, model: Path, tmp_path: Path) -> None:
    text = texts / "books" / "0.txt"
    told = run("train", text, "--out", tmp_path / "m", "--steps", 1, "--vocab-size", 300, "--d-model", 16, "--layers",
               1, "--heads", 2, "--context", 32, "--device", "cpu", "-v").stderr  # fmt: skip
    assert re.search(
        r"knnlm: training [\d,]+ parameters on \d+ tokens of 1 document, validation on \d+ tokens; cpu", told
    )
    told = run("build", text, "--model", model, "--out", tmp_path / "s", "-v").stderr
    assert re.search(r"knnlm: to build: \d+ tokens in 1 part", told)
