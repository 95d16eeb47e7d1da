"""Every command on a model trained in seconds: results and JSON. Refusals are in `test_cli_refusals.py`."""

import gzip
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest
from cli_corpus import run, run_json, sentence
from click.testing import Result

from knnlm._core import plan_index
from knnlm.build import estimate
from knnlm.build.estimate import free_bytes, process_bytes
from knnlm.cli import main
from knnlm.cli.commands.info import _pairs
from knnlm.cli.console import duration, plain, size
from knnlm.model.key_spec import KeySpec
from knnlm.report.progress import Task
from knnlm.store.datastore import Datastore
from knnlm.text.documents import Document
from knnlm.train.hold_out import hold_out

COMMANDS = [
    "demo", "train", "dump", "build", "add", "delete", "replace", "compact", "tune", "eval", "generate", "inspect",
    "info", "verify", "import", "export",
]  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_and_explains_every_option(name: str) -> None:
    text = run(name, "--help").output
    assert "Example" in text
    assert f"knnlm {name}" in text
    command = main.get_command(click.Context(main), name)
    assert command is not None
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


def test_the_program_lists_its_commands_without_loading_them() -> None:
    text = run("--help").output
    assert all(f"\n  {name} " in text for name in COMMANDS)
    assert "unknown" in run("unknown", code=2).output


def test_dump_writes_raw_keys_and_build_indexes_them(texts: Path, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "store"
    dumped = run_json("dump", texts / "books", "--model", model, "--out", path, "--keys", "float32")
    assert dumped["documents"] == 2
    assert run_json("info", path)["nlist"] is None
    with Datastore.open(path) as store:
        assert len(store) == dumped["tokens"]
        assert not store.is_built
    assert "--retrain" not in run("build", path).stderr
    assert run_json("info", path)["nlist"] >= 1
    assert "--retrain" in run("build", path, code=2).stderr
    assert run_json("build", path, "--retrain", "--code", "8,8", "--nlist", 2)["nlist"] == 2


def test_presets(texts: Path, model: Path, tmp_path: Path) -> None:
    run("dump", texts / "books", "--model", model, "--out", tmp_path / "store")
    shutil.copytree(tmp_path / "store", tmp_path / "small")
    small = run_json("build", tmp_path / "small", "--preset", "small")
    found = run_json("build", tmp_path / "store", "--preset", "paper", "--code", "16,8", "--nlist", 4)
    assert found["code"]["m"] == 16
    assert found["code"]["bits"] == 8
    assert small["code"]["bytes"] < found["code"]["bytes"]
    tuned = run_json("info", tmp_path / "store")["attributes"]["tuned"]
    assert tuned["nprobe"] == 32
    assert tuned["temperature"] == 1.0
    assert tuned["k"] == min(1024, found["entries"])


def test_dry_run_estimates_and_writes_nothing(texts: Path, model: Path, built: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    found = run_json("build", texts / "books", "--model", model, "--out", tmp_path / "new", "--dry-run")
    assert found["tokens"] == run_json("info", built)["n"]
    assert found["seconds"] > 0
    assert found["sample_seconds"] == found["dump_seconds"]  # of a short text the index is learnt from all
    assert found["seconds"] > found["sample_seconds"] + found["dump_seconds"] + found["text_seconds"]
    assert found["memory_bytes"] > 0
    assert sorted(tmp_path.rglob("*")) == before
    run("dump", texts / "books", "--model", model, "--out", tmp_path / "store")
    assert "tokens" in run("build", tmp_path / "store", "--dry-run").output
    assert run_json("info", tmp_path / "store")["nlist"] is None


@pytest.mark.parametrize("keep", ["float16", "float32", None])
def test_dry_run_knows_what_a_build_will_take(keep: Any, tmp_path: Path) -> None:
    keys = np.random.default_rng(0).standard_normal((30_000, 32), dtype=np.float32)
    path = tmp_path / "store"
    with Datastore.create(path, dim=32, keep_keys=keep) as opened:
        opened.add(keys, np.arange(len(keys)) % 50)
    found = run_json("build", path, "--dry-run")
    run("build", path)
    info = run_json("info", path)
    assert found["disk_bytes"] == pytest.approx(info["bytes"], rel=0.1)
    assert found["nlist"] == pytest.approx(info["nlist"], rel=0.3)
    assert found["peak_disk_bytes"] >= found["disk_bytes"]
    sampled = plan_index(len(keys), 32)[1]
    assert sampled == len(keys)  # all keys of a small store
    assert found["memory_bytes"] > process_bytes() / 2 + 2 * sampled * 32 * 4


def test_the_estimate_of_an_index_scales_each_stage_by_what_it_grows_with(tmp_path: Path) -> None:
    keys = np.random.default_rng(0).standard_normal((30_000, 32), dtype=np.float32)
    with Datastore.create(tmp_path / "store", dim=32, keep_keys="float32") as opened:
        opened.add(keys, np.zeros(len(keys), np.uint32))
        stages = estimate._build_stages(opened, nlist=100, code=None, threads=None)
    assert stages.keys() >= {*estimate.LEARN, estimate.MEASURE, "assign", "encode"}
    stages = {"start": 1.0, "lists": 2.0, "words": 3.0, "encode": 4.0, "measure recall": 5.0}
    assert estimate._scaled(stages, 81.0, 8.0) == pytest.approx((2 + 3) * 8 + (1 + 4) * 81 * 2 + 5 * 3)
    assert estimate._scaled(stages, 1.0, 1.0) == pytest.approx(sum(stages.values()))


@pytest.mark.parametrize("sampled", [700, 3000])
def test_the_estimate_of_the_disk_holds_from_a_small_sample(sampled: int, tmp_path: Path) -> None:
    keys = np.random.default_rng(0).standard_normal((20_000, 64), dtype=np.float32)
    values = np.zeros(len(keys), np.uint32)
    with Datastore.create(tmp_path / "store", dim=64) as opened:
        opened.add(keys, values)
        opened.build(threads=1)
        sections = opened.info()["sections"]
    listed = sum(sections.values()) - sum(sections[name] for name in ("Values", "Documents", "Checksums"))
    _, estimated = estimate._index(keys[:sampled], values[:sampled], len(keys), {"nlist": None, "code": None}, 1)
    assert estimated == pytest.approx(listed, rel=0.1)


def test_the_estimate_counts_what_the_model_reads_twice() -> None:
    from collections import Counter

    spec = KeySpec(window=100, context=50)
    assert estimate._passes(Counter({80: 10}), spec, 800, 1.0) == {"sample_seconds": 800.0, "dump_seconds": 800.0}
    # A half of the text and a quarter more is drawn.
    assert estimate._passes(Counter({80: 10}), spec, 400, 1.0) == {"sample_seconds": 500.0, "dump_seconds": 800.0}
    # Three windows of 100, 100 and 100 tokens for 200, each of the later ones with 50 that are context only.
    assert estimate._passes(Counter({200: 1}), spec, 10**6, 1.0)["dump_seconds"] == 300.0
    long = estimate._passes(Counter({81_920: 1}), spec, 4096, 1.0)  # a stretch of 5,120, with 50 tokens before it
    assert long["dump_seconds"] == pytest.approx(2 * 81_920, rel=0.01)
    assert long["sample_seconds"] == pytest.approx(2 * 5120, rel=0.02)


def test_free_bytes_are_those_of_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def usage(path: Any) -> Any:
        asked.append(Path(path))
        return SimpleNamespace(free=7)

    monkeypatch.setattr("knnlm.build.estimate.shutil.disk_usage", usage)
    assert free_bytes(tmp_path / "new" / "deep" / "store") == 7
    assert asked == [tmp_path]


def test_tune_saves_and_eval_uses_it(texts: Path, store: Path) -> None:
    tuned = run_json("tune", store, texts / "valid.txt", "--k", 64)
    assert tuned["perplexity"] <= tuned["lm_perplexity"]
    assert all(Path(path).read_text().startswith("<?xml") for path in tuned["plots"])
    assert [Path(path).stem for path in tuned["plots"]] == [
        f"perplexity-{x}" for x in ("lambda", "temperature", "k", "size")
    ]
    found = run_json("eval", store, texts / "test.txt")
    assert found["settings"]["lambda_"] == pytest.approx(tuned["lambda_"])
    assert found["settings"]["temperature"] == pytest.approx(tuned["temperature"])
    assert found["settings"]["k"] == tuned["k"]
    assert found["tokens"] > 300
    alone = run_json("eval", store, texts / "test.txt", "--lambda", 0)
    assert alone["perplexity"] == alone["lm_perplexity"] == pytest.approx(found["lm_perplexity"])
    exact = run_json("eval", store, texts / "test.txt", "--exact", "--temperature", 5, "--k", 16)
    assert exact["settings"]["exact"] is True
    assert "perplexity" in run("eval", store, texts / "test.txt").stdout


def test_exact_search_is_remembered_and_can_be_turned_off(texts: Path, store: Path) -> None:
    run("tune", store, texts / "valid.txt", "--k", 16, "--exact", "--no-plots")
    assert run_json("eval", store, texts / "test.txt")["settings"]["exact"] is True
    assert run_json("eval", store, texts / "test.txt", "--no-exact")["settings"]["exact"] is False


def test_cache_and_ngram_are_tuned_and_then_used(texts: Path, store: Path) -> None:
    assert "--cache --ngram" in run("eval", store, texts / "test.txt", "--cache", "--ngram", code=1).stderr
    tuned = run_json("tune", store, texts / "valid.txt", "--k", 16, "--cache", "--ngram", "--no-plots")
    assert set(tuned["blends"]) == {"cache", "ngram", "cache+ngram"}
    best = tuned["blends"]["cache+ngram"]
    assert sum(best["weights"].values()) == pytest.approx(1)
    assert best["perplexity"] <= min(tuned["perplexity"], tuned["blends"]["cache"]["perplexity"]) * 1.0001
    found = run_json("eval", store, texts / "test.txt", "--cache", "--ngram")
    assert found["blended"]["settings"]["blend"]["weights"] == best["weights"]
    assert found["blended"]["perplexity"] < found["perplexity"]  # words of a short list: the 5-gram knows more
    assert found["blended"]["lm_perplexity"] == found["lm_perplexity"]
    shown = run("eval", store, texts / "test.txt", "--cache")
    assert "blended in" in shown.stdout
    assert "cache of 8,000 tokens" in shown.stdout
    assert "5-gram model has counted" in run("eval", store, texts / "books" / "0.txt", "--ngram").stderr


def test_the_arithmetic_of_the_keys_is_remembered(texts: Path, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "store"
    run("dump", texts / "books", "--model", model, "--out", path, "--autocast", "bfloat16", "--keys", "float32")
    assert run_json("info", path)["attributes"]["autocast"] == "bfloat16"
    found = run_json("eval", path, texts / "books" / "0.txt", "--k", 1, "--lambda", 1, "--exclude", "none", "--exact")
    assert found["settings"]["autocast"] == "bfloat16"
    assert found["perplexity"] == 1.0  # the very keys, so every token finds itself


def test_the_input_of_any_module_can_be_the_key(texts: Path, model: Path, tmp_path: Path) -> None:
    run("dump", texts / "books", "--model", model, "--out", tmp_path / "a", "--key", "module:blocks.0.ffn")
    assert run_json("info", tmp_path / "a")["attributes"]["representation"] == "module:blocks.0.ffn"
    assert run_json("eval", tmp_path / "a", texts / "test.txt", "--k", 8)["settings"]["layer"] == -1
    wrong = run("dump", texts / "books", "--model", model, "--out", tmp_path / "b", "--key", "module:none", code=1)
    assert "named_modules" in wrong.stderr
    assert "module:NAME" in run("dump", "x", "--model", model, "--out", tmp_path / "b", "--key", "ffn", code=2).stderr


def test_documents_are_tokenised_once(
    texts: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from knnlm.text.tokenizer import BackendTokenizer
    from knnlm.text.tokenizer_probe import PROBE

    seen: list[int] = []
    original = BackendTokenizer.encode

    def encode(self: BackendTokenizer, text: str) -> Any:
        if text != PROBE:  # which tells tokenizers from each other
            seen.append(len(text))
        return original(self, text)

    monkeypatch.setattr(BackendTokenizer, "encode", encode)
    run("dump", texts / "books", "--model", model, "--out", tmp_path / "keys")
    assert len(seen) == 2
    seen.clear()
    run("build", texts / "books", "--model", model, "--out", tmp_path / "store", "--keep-keys")
    assert len(seen) == 3 * 2  # to count, for the sample, and to encode
    seen.clear()
    run("eval", tmp_path / "store", texts / "test.txt", "--k", 4)
    assert len(seen) == 1


def test_eval_and_tune_warn_of_text_that_the_store_has(texts: Path, store: Path, tmp_path: Path) -> None:
    result = run("eval", store, texts / "books" / "0.txt")
    assert "of the evaluated text the store has 1 document; left out: each one's own document" in result.stderr
    assert "that of the model alone is not" in result.stderr
    assert "weight" not in result.stderr.split("13 tokens")[1]  # which is of tune
    assert "100.0 %" in result.stderr
    assert run_json("eval", store, texts / "books" / "0.txt")["overlap_13gram"] == 1.0
    copied = Path(shutil.copytree(store, tmp_path / "copied"))
    known = run("tune", copied, texts / "books" / "0.txt", "--no-plots").stderr
    assert "100.0 % of the tokens are in a run of 13 tokens that the store has too" in known
    assert "the weight of the store that is chosen on it is too large" in known
    alone = run("eval", store, texts / "test.txt", "--lambda", 1, "--k", 1)
    assert "inf" in alone.stdout
    assert "with a lambda of 1 the model has no say" in alone.stderr
    assert "the store has" not in run("eval", store, texts / "test.txt").stderr


def test_generate_is_the_same_for_a_seed_and_continues_the_prompt(store: Path) -> None:
    first = run_json("generate", store, "--prompt", "the store", "--max-new-tokens", 8, "--do-sample")
    again = run_json("generate", store, "--prompt", "the store", "--max-new-tokens", 8, "--do-sample")
    assert first["text"] == again["text"] != ""
    printed = run("generate", store, "--prompt", "the store", "--max-new-tokens", 8, "--do-sample").stdout
    assert printed.rstrip("\n") == "the store" + first["text"].rstrip("\n")
    piped = run("generate", store, "--max-new-tokens", 8, "--without-store", stdin="the store\n").stdout
    assert piped.startswith("the store")


def test_inspect_shows_neighbors_in_context(texts: Path, store: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    found = run_json("inspect", store, "--string", "the store keeps a key", "--neighbors", 2, "--tokens", 3)
    assert len(found["tokens"]) == 3
    near = found["tokens"][1]["neighbors"]
    assert len(near) == 2
    assert near[0]["document"].endswith(".txt")
    assert near[0]["distance"] <= near[1]["distance"]
    assert 0 < near[0]["share"] <= 1
    assert "p_kNN" in run("inspect", store, texts / "test.txt", "--tokens", 2).stdout
    run("inspect", store, texts / "test.txt", "--tokens", 2, "--html", page)
    assert len(re.findall(r'"tokens":\[\[', page.read_text())) == 1
    assert "Of the 2 tokens above" in page.read_text()
    assert "--overwrite" in run("inspect", store, texts / "test.txt", "--html", page, code=2).stderr
    run("inspect", store, code=2)


def test_info(store: Path) -> None:
    found = run_json("info", store)
    on_disk = sum(file.stat().st_size for file in store.rglob("*") if file.name != "lock")
    assert found["bytes"] == on_disk
    text = run("info", store).stdout
    best = {row["k"]: row["best_recall"] for row in found["calibration"]}
    tokenizer = found["attributes"]["tokenizer"]["fingerprint"]
    for shown in ("entries", "bytes", "per entry", "model", "ffn-input", f"{found['n']:,}", tokenizer[:12]):
        assert shown in text
    assert all(f"{recall:.3f} for k {k:,}" in text for k, recall in best.items())
    assert best or "not measured" in text


def test_info_tells_of_drift_only_where_something_was_added(store: Path) -> None:
    with Datastore.open(store) as opened:
        info = opened.info() | {"drift": 0.25}
    assert "drift" not in _pairs(info)  # the later parts of the build itself
    assert "+25 %" in _pairs(info | {"next_id": info["next_id"] + 1})["drift"]
    assert "drift" in _pairs(info | {"attributes": {}})


def test_verify_lists_damage(store: Path) -> None:
    assert run_json("verify", store)["sound"] is True
    assert "sound" in run("verify", store).stderr
    segment = max(store.glob("*.seg"), key=lambda file: file.stat().st_size)
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    result = run("verify", store, code=1)
    assert segment.name in result.stdout
    found = run_json("verify", store, code=1)
    assert found["sound"] is False
    assert found["problems"]


def test_verify_and_inspect_tell_how_far_they_are(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int, int]] = []
    original = Task.update

    def update(self: Task, done: int, total: int | None = None) -> None:
        seen.append((self.stage, done, total or 0))
        original(self, done, total)

    monkeypatch.setattr(Task, "update", update)
    run("verify", store)
    stage, done, total = seen[-1]
    bytes_on_disk = sum(file.stat().st_size for file in store.glob("*.seg"))
    assert stage == "verify"
    assert total == bytes_on_disk
    assert 0.8 * total < done <= total
    seen.clear()
    run("inspect", store, "--string", "the store keeps a key")
    assert seen[-1][1] == seen[-1][2] > 0


def test_a_store_finds_its_model_wherever_both_are_moved(texts: Path, model: Path, tmp_path: Path) -> None:
    stores = []
    for place in ("here", "there"):
        shutil.copytree(model, tmp_path / place / "models" / "m")
        stores.append(tmp_path / place / "store")
        run("dump", texts / "books", "--model", tmp_path / place / "models" / "m", "--out", stores[-1])
    manifests = [next(store.glob("manifest-*.json")).read_bytes() for store in stores]
    assert manifests[0] == manifests[1]
    assert str(tmp_path).encode() not in manifests[0]
    (tmp_path / "there").rename(tmp_path / "moved")
    assert run_json("eval", tmp_path / "moved" / "store", texts / "test.txt")["tokens"] > 0


def test_input_of_every_kind_and_what_was_skipped(texts: Path, model: Path, tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.txt.gz", "wt") as file:
        file.write(sentence(1, 40))
    lines = [json.dumps({"body": sentence(number, 30)}) for number in range(3)]
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    (tmp_path / "c.txt").write_text(f"# one\n{sentence(3, 20)}\n# two\n{sentence(4, 20)}\n")
    (tmp_path / "d.bin").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "e.txt").write_bytes(b"\xef\xbb\xbfthe key\r\nthe value \xff\r\n")

    def dump(*sources: Any) -> Result:
        return run("dump", *sources, "--model", model, "--out", tmp_path / "store", "--overwrite")

    def documents() -> int:
        return int(run_json("info", tmp_path / "store")["documents"])

    dump(tmp_path / "a.txt.gz")
    assert documents() == 1
    dump(tmp_path / "b.jsonl", "--text-field", "body")
    assert documents() == 3
    dump(tmp_path / "c.txt", "--split-documents", "markdown")
    assert documents() == 2
    dump(tmp_path / "c.txt", "--split-documents", "^# two", "--max-documents", 1)
    assert documents() == 1
    result = dump(tmp_path / "*.[tb][xi][tn]")
    assert documents() == 2
    assert "d.bin" in result.stderr
    assert "e.txt" in result.stderr


def test_an_interrupted_training_resumes(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from knnlm.model.checkpoint import read_model
    from knnlm.train import loop

    original = loop._Run.step

    def interrupted(self: Any, *arguments: Any) -> None:
        if self.result.steps == 2:
            raise KeyboardInterrupt
        original(self, *arguments)

    options = (
        "train", texts / "books", "--out", tmp_path / "model", "--steps", 4, "--vocab-size", 300, "--d-model", 16,
        "--layers", 1, "--heads", 2, "--context", 32, "--batch-tokens", 256, "--optimizer", "muon",
    )  # fmt: skip
    monkeypatch.setattr(loop._Run, "step", interrupted)
    said = run(*options, code=130).stderr
    for part in ("interrupted after 2 steps", "state is saved in", "--resume", "a model with the weights of step 2"):
        assert part in said
    monkeypatch.setattr(loop._Run, "step", original)
    assert read_model(tmp_path / "model").config.d_model == 16
    assert run_json(*options, "--resume")["steps"] == 4


def test_hold_out_is_disjoint_and_never_empty() -> None:
    many = [Document(f"{number}.txt", "text") for number in range(200)]
    train, valid = hold_out(many)
    assert sorted(train + valid, key=lambda d: d.name) == sorted(many, key=lambda d: d.name)
    assert 1 <= len(valid) < 30
    train, valid = hold_out([Document("0.txt", "line\n" * 100), Document("1.txt", "x")])
    assert "".join(d.text for d in train if d.name == "0.txt") + valid[0].text == "line\n" * 100
    assert valid[0].text


def test_numbers_for_people_and_machines() -> None:
    assert [size(n) for n in (0, 999, 1500, 2_500_000)] == ["0 B", "999 B", "1.5 kB", "2.5 MB"]
    assert [duration(s) for s in (0.42, 12, 185, 7800)] == ["0.4 s", "12 s", "3 min 5 s", "2 h 10 min"]
    assert plain({"a": float("inf"), "b": Path("x"), 3: (1, None)}) == {"a": "inf", "b": "x", "3": [1, None]}
