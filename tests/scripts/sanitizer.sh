#!/bin/sh
# The whole crate under AddressSanitizer: every test of the library and of tests/rust. Needs a nightly toolchain.
# Usage: tests/scripts/sanitizer.sh [arguments of cargo test]
set -eu
cd "$(dirname "$0")/../.."
target=$(rustc -vV | sed -n 's/^host: //p')
# Leaks are looked for, too; a pool of threads that is alive at the end is none.
RUSTFLAGS="-Zsanitizer=address" ASAN_OPTIONS="detect_stack_use_after_return=1" \
    cargo +nightly test --target "$target" --target-dir "${CARGO_TARGET_DIR:-target}/sanitizer" "$@"
