"""`knnlm train`: it says how well it does on the way, and what of the validation text it could not read."""

from pathlib import Path
from typing import Any

import pytest
from cli_corpus import run, run_json, sentence

from knnlm.model.checkpoint import read_begun, read_model
from knnlm.model.transformer import TransformerConfig, TransformerLM
from knnlm.report.progress import Progress, Task
from knnlm.text.documents import Document
from knnlm.text.tokenizer import Tokenizer
from knnlm.train import loop

TRAIN = ("--steps", 1, "--vocab-size", 300, "--d-model", 16, "--layers", 1, "--heads", 2, "--context", 32,
         "--batch-tokens", 64, "--threads", 1)  # fmt: skip


def test_validation_is_said_and_skipped_validation_text_is_reported(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid" / "a.txt").write_text(sentence(3, 40))
    (tmp_path / "valid" / "b.bin").write_bytes(b"\0binary")
    given = ("train", texts / "books" / "0.txt", "--valid", tmp_path / "valid", *TRAIN, "--out")
    said = run(*given, tmp_path / "one").stderr
    assert "validation perplexity" in said.split("after 1 step,")[0]
    assert "skipped: b.bin" in said
    found = run_json(*given, tmp_path / "two")
    assert [name for name, _ in found["read_valid"]["skipped"]] == ["b.bin"]


def test_the_result_stays_with_quiet(texts: Path, tmp_path: Path) -> None:
    told = run("train", texts / "books" / "0.txt", *TRAIN, "--out", tmp_path / "model", "-q")
    assert told.stdout.startswith(f"{tmp_path / 'model'}: 1 step, ")
    assert "validation perplexity" in told.stdout
    assert told.stderr == ""


def test_a_training_is_resumed_with_its_own_sizes(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = loop._Run.step

    def interrupted(self: Any, *arguments: Any) -> None:
        if self.result.steps == 2:
            raise KeyboardInterrupt
        original(self, *arguments)

    given = ("train", texts / "books" / "0.txt", "--out", tmp_path / "model")
    sizes = ("--vocab-size", 300, "--d-model", 16, "--layers", 1, "--heads", 2, "--context", 32, "--dropout", 0.2)
    settings = ("--steps", 4, "--batch-tokens", 64, "--optimizer", "muon", "--seed", 3)
    monkeypatch.setattr(loop._Run, "step", interrupted)
    run(*given, *sizes, *settings, code=130)
    monkeypatch.setattr(loop._Run, "step", original)
    assert "expected 16, as the training in" in run(*given, "--resume", "--d-model", 32, code=2).stderr
    assert "--d-model: " in run(*given, "--resume", "--d-model", 32, code=2).stderr
    found = run_json(*given, "--resume")
    assert found["steps"] == 4
    config = read_model(tmp_path / "model").config
    assert (config.d_model, config.n_layers, config.n_heads, config.context, config.dropout) == (16, 1, 2, 32, 0.2)
    whole = run_json("train", texts / "books" / "0.txt", "--out", tmp_path / "whole", *sizes, *settings)
    assert whole["valid_perplexity"] == found["valid_perplexity"]  # batches, optimizer and seed too
    assert run_json(*given, "--resume", "--steps", 5)["steps"] == 5


def test_a_state_without_a_validation_has_its_tokenizer(texts: Path, tmp_path: Path) -> None:
    text = [Document("a", sentence(1))]
    model = TransformerLM(TransformerConfig(300, 16, 1, 2, context=32))
    training = loop._Run(model, Tokenizer.train_bpe([text[0].text], 300), text, text, tmp_path, loop.TrainConfig(2))
    training.save()
    begun = read_begun(tmp_path)
    assert begun is not None
    assert (begun[0]["d_model"], begun[1]["max_steps"]) == (16, 2)
    assert Tokenizer.load(tmp_path).vocab_size == training.tokenizer.vocab_size
    assert read_begun(tmp_path / "nothing") is None


@pytest.mark.parametrize(("budget", "unit"), [("--seconds", "s"), ("--steps", "steps")])
def test_bars_say_what_they_count_and_end(
    budget: str, unit: str, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks: dict[str, Task] = {}
    track = Progress.track
    monkeypatch.setattr(
        Progress, "track", lambda self, stage, *a, **k: tasks.setdefault(stage, track(self, stage, *a, **k))
    )
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.txt").write_text(sentence(1))
    (folder / "b.bin").write_bytes(b"\0binary" * 500)  # skipped, behind the last document
    run("train", folder, "--out", tmp_path / "model", budget, 1, *TRAIN[2:])
    assert (tasks["train"].unit, tasks["tokenise"].unit, tasks["read"].unit) == (unit, "characters", "bytes")
    assert all(task.done >= task.total for task in tasks.values())


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
