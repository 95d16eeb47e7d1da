#!/bin/sh
# Builds the crate for aarch64 and runs its tests, NEON kernels among them, under emulation. Proves results, not speed.
# Debian: dpkg --add-architecture arm64 && apt-get update && apt-get install rustc-web libstd-rust-web-dev:arm64 \
#         gcc-aarch64-linux-gnu qemu-user-static
# Usage: tests/scripts/aarch64.sh [arguments of cargo test]; RUSTC names a compiler with an aarch64 standard library.
set -eu
cd "$(dirname "$0")/../.."
export RUSTC="${RUSTC:-/usr/bin/rustc}"
# A dynamically linked test hangs at its first thread under this emulator.
export RUSTFLAGS="-Ctarget-feature=+crt-static"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="${EMULATOR:-qemu-aarch64-static}"
export KNNLM_REQUIRE_ISA=neon
cargo test --target aarch64-unknown-linux-gnu --target-dir "${CARGO_TARGET_DIR:-target}/aarch64" "$@"
