"""What commands say of settings that nobody chose, that changed hands, or that count for nothing."""

from pathlib import Path

import pytest
from cli_corpus import run, run_json


def test_defaults_are_said_until_the_store_is_tuned(texts: Path, store: Path) -> None:
    text = texts / "test.txt"
    for command in (("eval", store, text), ("generate", store, "--prompt", "the", "--max-new-tokens", 1),
                    ("inspect", store, text, "--tokens", 1)):  # fmt: skip
        said = run(*command).stderr
        assert "λ 0.250, T " in said
        assert "defaults, the store is not tuned" in said
    said = run("eval", store, text, "--lambda", 0.1, "--k", 8).stderr
    assert "T " in said.split("are defaults")[0]
    assert "λ" not in said
    assert "defaults" not in run("eval", store, text, "--lambda", 0.1, "--k", 8, "--temperature", 3).stderr
    run("tune", store, texts / "valid.txt", "--k", 16, "--no-plots")
    assert "defaults" not in run("eval", store, text).stderr


def test_a_new_index_says_what_becomes_of_tuned_settings(texts: Path, store: Path) -> None:
    assert "knnlm tune" not in run("build", store, "--retrain").stderr
    tuned = run_json("tune", store, texts / "valid.txt", "--k", 16, "--no-plots")
    settings = f"λ {tuned['lambda_']:.3f}, T {tuned['temperature']:.4g}, k {tuned['k']}"
    said = run("build", store, "--retrain").stderr
    assert f"kept {settings}" in said
    said = run("build", store, "--retrain", "--preset", "paper", "--nlist", 4, "--code", "8,8").stderr
    assert f"replace the tuned ones ({settings})" in said
    assert "of the preset paper" in run("eval", store, texts / "test.txt").stderr


def test_a_weight_that_does_nothing_is_said(texts: Path, store: Path) -> None:
    run("tune", store, texts / "valid.txt", "--k", 16, "--cache", "--no-plots")
    assert "--lambda does not change" in run("eval", store, texts / "test.txt", "--cache", "--lambda", 0.1).stderr
    assert "--lambda does not change" not in run("eval", store, texts / "test.txt", "--cache").stderr


@pytest.mark.parametrize("command", ["dump", "build"])
def test_the_metric_of_a_store_can_be_chosen(command: str, texts: Path, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "store"
    run(command, texts / "books" / "0.txt", "--model", model, "--out", path, "--metric", "ip")
    assert run_json("info", path)["metric"] == "ip"
    if command == "dump":
        assert "--metric ip" in run("build", path, "--metric", "l2", code=2).stderr
        run("build", path)
    assert run_json("eval", path, texts / "test.txt")["perplexity"] > 1
