"""train.py and checkpoint.py: it learns, it resumes to the same bits, it survives Ctrl-C, files are checked."""

import itertools
import json
import math
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from knnlm.model.checkpoint import STATE_FILE, read_config, read_model, save_model
from knnlm.model.transformer import TransformerConfig, TransformerLM
from knnlm.text.documents import Document
from knnlm.train.cross_entropy import IGNORE
from knnlm.train.loop import TrainConfig, TrainResult, _Run, batches, collate, crops, learning_rate, train, validate


def fresh(tokenizer, dropout=0.1):
    torch.manual_seed(0)
    size = TransformerConfig(tokenizer.vocab_size, d_model=32, n_layers=2, n_heads=2, context=32, dropout=dropout)
    return TransformerLM(size)


def config(**options):
    defaults = {"max_steps": 12, "batch_tokens": 128, "learning_rate": 3e-3, "bf16": False, "valid_steps": 4}
    return TrainConfig(**(defaults | options))


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("phase", [0, 1, 7])
def test_crops_cover_every_token_once_and_start_with_bos(phase):
    tokens = np.arange(1, 31, dtype=np.uint32)
    parts = list(crops(tokens, 99, 8, phase))
    assert np.array_equal(np.concatenate([y for _, y in parts]), tokens)
    assert np.array_equal(np.concatenate([x for x, _ in parts]), [99, *range(1, 30)])
    assert len(parts[0][0]) == 8 - phase
    assert all(len(x) <= 8 for x, _ in parts)
    assert list(crops(tokens[:0], 99, 8)) == []


def test_batches_hold_every_crop_once_within_the_budget():
    rng = np.random.default_rng(0)
    parts = [(np.full(n, i), np.full(n, i)) for i, n in enumerate(rng.integers(1, 33, 100))]
    groups = batches(parts, 128, np.random.default_rng(1))
    assert sorted(int(x[0]) for group in groups for x, _ in group) == list(range(100))
    assert all(len(group) * max(len(x) for x, _ in group) <= 128 for group in groups)
    again = batches(parts, 128, np.random.default_rng(1))
    assert [[x[0] for x, _ in g] for g in groups] == [[x[0] for x, _ in g] for g in again]


def test_padding_is_ignored():
    inputs, targets = collate(
        [(np.array([1, 2]), np.array([2, 3])), (np.array([4]), np.array([5]))], torch.device("cpu")
    )
    assert inputs.tolist() == [[1, 2], [4, 0]]
    assert targets.tolist() == [[2, 3], [5, IGNORE]]


def test_validation_of_a_uniform_model_is_the_vocabulary_size(tiny_model):
    with torch.no_grad():
        tiny_model.lm_head.weight.zero_()
    tokens = [np.arange(20, dtype=np.uint32) % 20, np.arange(7, dtype=np.uint32)]
    assert validate(tiny_model, tokens, 0, None, False) == pytest.approx(tiny_model.config.vocab_size, rel=1e-5)


def test_validation_scores_each_token_of_each_document_once(tiny_model):
    tokens = [np.arange(45, dtype=np.uint32) % 20, np.array([3], dtype=np.uint32)]
    total = 0.0
    for document in tokens:
        for x, y in crops(document, 1, 32):
            log_p = tiny_model(torch.from_numpy(x.astype(np.int64))[None]).logits[0].log_softmax(-1)
            total -= float(log_p[torch.arange(len(y)), torch.from_numpy(y.astype(np.int64))].sum().detach())
    assert validate(tiny_model, tokens, 1, None, False) == pytest.approx(math.exp(total / 46), rel=1e-5)


def test_schedule_rises_then_falls_to_the_floor():
    c = config(warmup=0.1, final_rate=0.05)
    rates = [learning_rate(c, done) for done in np.linspace(0, 1, 101)]
    assert max(rates) == pytest.approx(c.learning_rate)
    assert np.argmax(rates) == 10
    assert (np.diff(rates[:11]) > 0).all()
    assert (np.diff(rates[10:]) < 0).all()
    assert rates[-1] == pytest.approx(0.05 * c.learning_rate)


@pytest.mark.parametrize("sampled", [{}, {"sampled_head": 6, "sampled_rest": 6}])
def test_training_learns_the_tiny_language(tiny_corpus, tiny_tokenizer, tmp_path, sampled):
    train_docs, valid_docs = tiny_corpus
    calls = []
    result = train(
        fresh(tiny_tokenizer, dropout=0.0),
        tiny_tokenizer,
        train_docs,
        valid_docs,
        tmp_path,
        config(max_steps=150, valid_steps=50, learning_rate=1e-2, **sampled),
        progress=lambda *call: calls.append(call),
    )
    assert result.steps == 150
    assert [point["step"] for point in result.curve] == [50, 100, 150]
    assert (
        result.best == min(p["valid_perplexity"] for p in result.curve)
        or result.best < result.curve[0]["valid_perplexity"]
    )
    assert 3.0 < result.best < 6.0  # three followers and now and then a line end: about 4; without learning 25
    assert calls[-1] == ("train", 150, 150)
    curve = json.loads((tmp_path / "curve.json").read_text())
    assert curve["curve"] == result.curve
    best = read_model(tmp_path)
    tokens = [tiny_tokenizer.encode(d.text) for d in valid_docs]
    assert validate(best, tokens, tiny_tokenizer.bos_id, None, False) == pytest.approx(result.best, rel=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_killed_and_resumed_equals_uninterrupted(tiny_corpus, tiny_tokenizer, tmp_path, optimizer):
    train_docs, valid_docs = tiny_corpus

    class KillError(Exception):
        pass

    def kill(stage, done, total):
        if done == 7:
            raise KillError

    whole = fresh(tiny_tokenizer)
    expected = train(
        whole, tiny_tokenizer, train_docs, valid_docs, tmp_path / "whole", config(max_steps=25, optimizer=optimizer)
    )
    options = config(max_steps=25, save_seconds=0.0, optimizer=optimizer)
    with pytest.raises(KillError):
        train(fresh(tiny_tokenizer), tiny_tokenizer, train_docs, valid_docs, tmp_path / "cut", options, progress=kill)
    torch.manual_seed(123)  # another process has another generator state
    second = TransformerLM(whole.config)
    result = train(
        second, tiny_tokenizer, train_docs, valid_docs, tmp_path / "cut", config(max_steps=25, optimizer=optimizer)
    )
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(second)[name]), name
    strip = [{k: v for k, v in point.items() if k != "seconds"} for point in result.curve]
    assert strip == [{k: v for k, v in point.items() if k != "seconds"} for point in expected.curve]
    assert (result.steps, result.tokens, result.best) == (expected.steps, expected.tokens, expected.best)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_ctrl_c_saves_and_the_next_call_goes_on(tiny_corpus, tiny_tokenizer, tmp_path):
    def interrupt(stage, done, total):
        if stage == "train" and done == 3:
            raise KeyboardInterrupt

    model = fresh(tiny_tokenizer)
    result = train(model, tiny_tokenizer, *tiny_corpus, tmp_path, config(), progress=interrupt)
    assert result.interrupted
    assert result.steps == 3
    assert (tmp_path / STATE_FILE).is_file()
    seen = []
    again = train(
        fresh(tiny_tokenizer),
        tiny_tokenizer,
        *tiny_corpus,
        tmp_path,
        config(),
        progress=lambda *call: seen.append(call),
    )
    assert next(done for stage, done, _ in seen if stage == "train") == 4
    characters = sum(len(document.text) for document in tiny_corpus[0])
    assert [call for call in seen if call[0] == "tokenise"][-1] == ("tokenise", characters, characters)
    assert again.steps == 12
    assert not again.interrupted


def test_each_validation_is_told_and_an_early_ctrl_c_leaves_weights(tiny_corpus, tiny_tokenizer, tmp_path):
    def interrupt(stage, done, total):
        if stage == "train" and done == 1:
            raise KeyboardInterrupt

    model = fresh(tiny_tokenizer)
    early = train(model, tiny_tokenizer, *tiny_corpus, tmp_path, config(valid_steps=None), progress=interrupt)
    assert early.best == float("inf")
    saved = weights(read_model(tmp_path))
    assert all(torch.equal(value, saved[name]) for name, value in weights(model).items())
    told = []
    result = train(model, tiny_tokenizer, *tiny_corpus, tmp_path, config(valid_steps=6), on_valid=told.append)
    assert [point["step"] for point in told] == [6, 12]
    assert told == result.curve


def test_a_real_ctrl_c_finishes_its_step_and_the_rest_gives_the_same_bits(tiny_corpus, tiny_tokenizer, tmp_path):
    whole = fresh(tiny_tokenizer)
    train(whole, tiny_tokenizer, *tiny_corpus, tmp_path / "whole", config())
    before = signal.getsignal(signal.SIGINT)
    cut = fresh(tiny_tokenizer)
    cut.blocks[1].register_forward_hook(
        lambda *_: signal.raise_signal(signal.SIGINT) if cut.training and next(count) == 4 else None
    )
    count = itertools.count()
    result = train(cut, tiny_tokenizer, *tiny_corpus, tmp_path / "cut", config())
    assert (result.steps, result.interrupted) == (5, True)
    assert signal.getsignal(signal.SIGINT) is before
    second = fresh(tiny_tokenizer)
    train(second, tiny_tokenizer, *tiny_corpus, tmp_path / "cut", config())
    assert all(torch.equal(value, weights(second)[name]) for name, value in weights(whole).items())


def test_without_resume_training_starts_anew(tiny_corpus, tiny_tokenizer, tmp_path):
    train(fresh(tiny_tokenizer), tiny_tokenizer, *tiny_corpus, tmp_path, config(max_steps=3))
    result = train(fresh(tiny_tokenizer), tiny_tokenizer, *tiny_corpus, tmp_path, config(max_steps=2), resume=False)
    assert result.steps == 2


def test_a_finished_run_is_not_trained_further(tiny_corpus, tiny_tokenizer, tmp_path):
    model = fresh(tiny_tokenizer)
    train(model, tiny_tokenizer, *tiny_corpus, tmp_path, config(max_steps=3))
    before = weights(model)
    again = train(model, tiny_tokenizer, *tiny_corpus, tmp_path, config(max_steps=3))
    assert again.steps == 3
    assert all(torch.equal(value, weights(model)[name]) for name, value in before.items())


def test_budget_in_seconds_ends_by_itself_and_fine_tunes_from_a_checkpoint(tiny_corpus, tiny_tokenizer, tmp_path):
    train(fresh(tiny_tokenizer), tiny_tokenizer, *tiny_corpus, tmp_path / "first", config(max_steps=20))
    model = read_model(tmp_path / "first")
    options = TrainConfig(max_seconds=1.0, batch_tokens=128, bf16=False, warmup=0.0, learning_rate=1e-4)
    result = train(model, tiny_tokenizer, *tiny_corpus, tmp_path / "tuned", options)
    assert result.steps > 0
    assert result.curve
    assert read_model(tmp_path / "tuned").config == model.config


@pytest.mark.parametrize(
    ("steps", "seconds", "done"),
    [(9, 9.0, 0.01), (90, 30.0, 0.125), (90, 150.0, 0.625), (900, 130.0, 1.0), (300, 240.0, 1.0)],
)
def test_steps_rule_a_schedule_until_the_clock_is_ahead(steps, seconds, done):
    both = SimpleNamespace(max_steps=900, max_seconds=240.0)
    assert _Run.done.fget(SimpleNamespace(config=both, result=TrainResult(steps), seconds=seconds)) == done


def test_training_in_bf16_gives_finite_weights_in_float32(tiny_corpus, tiny_tokenizer, tmp_path):
    model = fresh(tiny_tokenizer)
    result = train(model, tiny_tokenizer, *tiny_corpus, tmp_path, config(bf16=True))
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())
    assert result.best < tiny_tokenizer.vocab_size * 1.5


def test_only_matrices_decay(tiny_model):
    from knnlm.train.loop import make_optimizer

    groups = make_optimizer(tiny_model, config()).param_groups
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert all(p.dim() == 2 for p in groups[0]["params"])
    assert sum(len(g["params"]) for g in groups) == len(list(tiny_model.parameters()))


def test_a_run_without_end_is_refused():
    with pytest.raises(ValueError, match="max_steps or max_seconds"):
        TrainConfig()
    with pytest.raises(ValueError, match="must be positive"):
        TrainConfig(max_steps=1, batch_tokens=0)
    with pytest.raises(ValueError, match="sampled_rest must be positive"):
        TrainConfig(max_steps=1, sampled_head=10)
    with pytest.raises(ValueError, match="adamw or muon, found 'sgd'"):
        TrainConfig(max_steps=1, optimizer="sgd")


def test_no_tokens_is_an_error(tiny_tokenizer, tiny_corpus, tmp_path):
    with pytest.raises(ValueError, match="found none"):
        train(fresh(tiny_tokenizer), tiny_tokenizer, [Document("a", "")], tiny_corpus[1], tmp_path, config())


def test_model_folder_round_trip(tiny_model, tiny_tokenizer, tmp_path):
    save_model(tmp_path, tiny_model, tiny_tokenizer)
    assert read_config(tmp_path) == tiny_model.config
    loaded = read_model(tmp_path)
    assert loaded.lm_head.weight is loaded.embedding.weight
    assert not loaded.training
    ids = torch.arange(10)[None]
    assert torch.equal(loaded(ids).logits, tiny_model(ids).logits)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_weights_of_other_sizes_are_refused(tiny_model, tiny_tokenizer, tmp_path):
    save_model(tmp_path, tiny_model, tiny_tokenizer)
    data = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(data | {"n_layers": 3}))
    with pytest.raises(ValueError, match=r"missing \['blocks.2"):
        read_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(data | {"d_ff": 64}))
    with pytest.raises(ValueError, match=r"expected blocks.0.ffn.up.weight of shape \(64, 32\).*found \(128, 32\)"):
        read_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(data | {"surprise": 1}))
    with pytest.raises(ValueError, match="surprise"):
        read_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"expected a config\.json with model_type"):
        read_model(tmp_path)


def test_a_foreign_state_file_is_refused(tiny_corpus, tiny_tokenizer, tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / STATE_FILE)
    with pytest.raises(ValueError, match="delete the file to restart"):
        train(fresh(tiny_tokenizer), tiny_tokenizer, *tiny_corpus, tmp_path, config())
