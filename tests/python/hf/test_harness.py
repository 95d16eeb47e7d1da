"""lm-evaluation-harness: results with λ = 0 are those of its own class; neighbors are looked for where it scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli_corpus import run, run_json
from hf_attach import untouched
from hf_folders import TEXT, save_folder, tokenizer

from knnlm import KNNLM, Datastore

pytest.importorskip("lm_eval")

pytestmark = pytest.mark.filterwarnings("ignore")

SETTINGS = {"lambda_": 0.5, "temperature": 3.0, "k": 8}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("harness")
    model = save_folder(folder / "model", tokenizer("bytes"), max_position_embeddings=128)
    KNNLM.build(model, [("a", TEXT)], folder / "store")
    return folder / "store"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """A rolling perplexity, a choice of several words, one of one word, and a generation, of local data."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"text": TEXT[i * 40 : i * 40 + 300], "question": "the cat sat on", "right": i % 2} for i in range(4)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = f"dataset_path: json\ndataset_kwargs:\n  data_files: {folder / 'rows.jsonl'}\ntest_split: train\n"
    (folder / "rolling.yaml").write_text(
        f"task: my_rolling\n{data}output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{{{text}}}}'\n"
        "metric_list:\n  - metric: word_perplexity\n  - metric: byte_perplexity\n"
    )
    for name, choices in (("my_choice", '["the mat", "the dog sat"]'), ("my_word", '["mat", "dog"]')):
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\n{data}output_type: multiple_choice\ndoc_to_text: '{{{{question}}}}'\n"
            f"doc_to_target: right\ndoc_to_choice: {choices}\nmetric_list:\n  - metric: acc\n"
        )
    return folder


NAMES = ("my_rolling", "my_choice", "my_word")


def test_with_no_weight_the_results_are_those_of_the_harness(store, tasks):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from knnlm.hf.harness import evaluate_tasks

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    theirs = simple_evaluate(
        "hf", {"pretrained": str(store.parent / "model"), "device": "cpu", "dtype": "float32"}, tasks=list(NAMES),
        task_manager=manager, bootstrap_iters=10, batch_size=2,
    )["results"]  # fmt: skip
    loading = {"device": "cpu", "batch_size": 2}
    ours = evaluate_tasks(store, NAMES, include_path=tasks, loading=loading, settings={"lambda_": 0.0})
    mixed = evaluate_tasks(store, NAMES, include_path=tasks, loading=loading, settings=SETTINGS)
    for name in NAMES:
        metrics = [key for key in theirs[name] if "perplexity" in key or key.startswith("acc,")]
        assert metrics
        assert [ours["results"][name][key] for key in metrics] == [theirs[name][key] for key in metrics]
    key = "byte_perplexity,none"
    assert mixed["results"]["my_rolling"][key] < theirs["my_rolling"][key]
    assert mixed["settings"]["lambda_"] == 0.5
    alone = evaluate_tasks(store, ["my_rolling"], without_store=True, include_path=tasks, loading=loading)
    assert alone["results"]["my_rolling"][key] == theirs["my_rolling"][key]
    assert alone["settings"] is None


@pytest.mark.parametrize("batch_size", [1, 3])
def test_only_scored_tokens_are_looked_for_and_scores_are_the_same(store, batch_size, monkeypatch):
    from lm_eval.api.instance import Instance

    from knnlm.hf.harness import HarnessLM

    lm = HarnessLM(store, device="cpu", batch_size=batch_size, **SETTINGS)
    requests = [
        Instance("loglikelihood", {}, pair, i)
        for i, pair in enumerate(
            [
                ("the cat sat on", " the mat"),
                ("the cat sat on", " the dog"),
                ("and", " the"),
                ("and", " a"),
                ("", "def"),
            ]
        )
    ]
    asked = []
    find = lm.memory.retriever.find
    monkeypatch.setattr(
        lm.memory.retriever, "find", lambda keys, **options: asked.append(len(keys)) or find(keys, **options)
    )
    some = lm.loglikelihood(requests, disable_tqdm=True)
    count = sum(asked)
    asked.clear()
    monkeypatch.setattr(lm, "_wanted", lambda inps: np.ones(tuple(inps.shape), bool))
    every = lm.loglikelihood(requests, disable_tqdm=True)
    assert [right for _, right in some] == [right for _, right in every]
    np.testing.assert_allclose([p for p, _ in some], [p for p, _ in every], atol=1e-4)
    assert count < sum(asked)
    lm.memory.detach()
    assert untouched(lm.model)


def test_the_command(store, tasks):
    found = run_json("lm-eval", store, *NAMES, "--include-path", tasks, "--lambda", 0.5, "--k", 8, "--device", "cpu")
    assert set(found["results"]) == set(NAMES)
    assert found["settings"]["k"] == 8
    shown = run("lm-eval", store, "my_word", "--include-path", tasks, "--limit", 2, "--device", "cpu").stdout
    assert "my_word" in shown
    assert "acc" in shown
    wrong = run("lm-eval", store, "my_wrd", "--include-path", tasks, code=1).stderr
    assert "did you mean my_word" in wrong.replace("\n", " ")


def test_a_model_that_did_not_write_the_store_is_refused(store, tmp_path):
    from knnlm.hf.harness import HarnessLM

    other = save_folder(tmp_path / "other", tokenizer("bytes"), "GPT2")
    with pytest.raises(ValueError, match="does not belong to this model"):
        HarnessLM(store, str(other), device="cpu")
    with Datastore.open(store) as opened:
        assert len(opened)
