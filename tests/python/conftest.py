"""Fixtures shared by the tests of the language-model half: a tiny corpus, tokenizer and model, and quiet libraries."""

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a warning after fork would be an error
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks the network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models of the tests are too small to share between threads

import random

import pytest
from cli_corpus import built, model, store, texts  # noqa: F401  # fixtures of every file
from skips import missing_package

NO_SKIPS = "KNNLM_REQUIRE_TEST_PACKAGES"
"""Where this is set, as in CI, a test that is skipped for a package of the `[test]` extra fails."""


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport():
    """A skip that hides breakage is a failure."""
    outcome = yield
    _fail_if_hidden(outcome.get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report():
    """The same for a whole file."""
    outcome = yield
    _fail_if_hidden(outcome.get_result())


def _fail_if_hidden(report):
    if not report.skipped or not os.environ.get(NO_SKIPS) or not isinstance(report.longrepr, tuple):
        return
    if package := missing_package(reason := report.longrepr[2]):
        report.outcome = "failed"
        report.longrepr = f"{NO_SKIPS} is set and {package} is a package of the test extra: {reason}"


def tiny_documents(count, seed, sentences=12):
    """Documents in a language of 24 words whose next word depends on the last one, so that a model can learn it."""
    from knnlm.text.documents import Document

    rng = random.Random(seed)
    followers = {i: [(5 * i + j) % 24 for j in (1, 2, 3)] for i in range(24)}
    documents = []
    for number in range(count):
        word, lines = rng.randrange(24), []
        for _ in range(sentences):
            line = []
            for _ in range(rng.randint(3, 9)):
                word = rng.choice(followers[word])
                line.append(f"w{word}")
            lines.append(" ".join(line))
        documents.append(Document(f"doc{number}", "\n".join(lines) + "\n"))
    return documents


@pytest.fixture(scope="session")
def tiny_corpus():
    """Train and validation documents of the tiny language."""
    return tiny_documents(12, 0), tiny_documents(4, 1)


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_corpus):
    """Word-level tokenizer of the tiny language."""
    from knnlm.text.tokenizer import Tokenizer

    return Tokenizer.train_words(document.text for document in tiny_corpus[0])


@pytest.fixture
def tiny_model(tiny_tokenizer):
    """A fresh transformer of two layers, the same weights each time."""
    import torch

    from knnlm.model.transformer import TransformerConfig, TransformerLM

    torch.manual_seed(0)
    return TransformerLM(
        TransformerConfig(tiny_tokenizer.vocab_size, d_model=32, n_layers=2, n_heads=2, context=32, dropout=0.1)
    ).eval()
