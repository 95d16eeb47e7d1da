# `make` formats, lints and tests; `make help` lists the targets. Needs `pip install -c constraints.txt -e '.[dev]'`.
PYTHON ?= python

.PHONY: all help build format lint lint-rust lint-python test test-rust test-python bench wheel clean

all: format lint test  ## format, lint and test

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build:  ## compile the extension into the current environment
	maturin develop --release

format:  ## rewrite the sources in the house style
	cargo fmt
	ruff check --fix --quiet .
	ruff format --quiet .

lint: lint-python lint-rust  ## every check that does not run the program; warnings are errors

lint-rust:
	cargo fmt --check
	cargo clippy --locked --quiet --all-targets -- -D warnings
	cargo clippy --quiet --all-targets --features python -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --quiet --no-deps

lint-python:
	ruff check --quiet .
	ruff format --check --quiet .
	$(PYTHON) -m mypy
	$(PYTHON) -m mypy.stubtest knnlm._core --mypy-config-file pyproject.toml

test: test-rust test-python  ## all tests

test-rust:  ## tests of the crate; no Python needed
	cargo test --quiet

test-python:  ## tests of the package
	$(PYTHON) -m pytest

bench:  ## Criterion benchmarks of the crate
	cargo bench

wheel:  ## one wheel for CPython 3.10 and later, in dist/
	maturin build --release --locked --quiet --out dist --interpreter $$(command -v python3)

clean:  ## remove what was built
	rm -rf target dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
