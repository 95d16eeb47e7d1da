#!/bin/sh
# Line coverage of everything that parses or reads a store, by the crate's tests. Prints a table; fails below 90 %.
# Needs a nightly toolchain with llvm-tools: rustup component add llvm-tools --toolchain nightly
# Usage: tests/scripts/coverage.sh [LCOV FILES of other runs, say of the fuzz targets, instead of running the tests]
set -eu
cd "$(dirname "$0")/../.."
format='manifest records segment map lock runs deleted documents values damage'
read='snapshot lookup search info verify'
files="rust/sections.rs $(for name in $format; do echo "rust/store/format/$name.rs"; done)
    $(for name in $read; do echo "rust/store/read/$name.rs"; done)
    rust/index/codebook.rs rust/index/lists.rs rust/index/memory.rs
    rust/index/decode.rs rust/search/plan.rs"
if [ $# = 0 ]; then
    target="${CARGO_TARGET_DIR:-target}/coverage"
    tools="$(rustc +nightly --print target-libdir)/../bin"
    rm -rf "$target/profiles"
    run() {
        RUSTFLAGS="-C instrument-coverage" LLVM_PROFILE_FILE="$target/profiles/%m-%p.profraw" \
            cargo +nightly test --config profile.test.opt-level=1 --target-dir "$target" "$@"
    }
    run --quiet --lib -- store:: memory:: damaged
    run --quiet --test main
    objects=$(run --lib --test main --no-run 2>&1 | sed -n 's/.*(\(.*\))$/\1/p')
    "$tools/llvm-profdata" merge --sparse "$target"/profiles/*.profraw -o "$target/tests.profdata"
    set -- "$target/tests.lcov"
    # shellcheck disable=SC2086 # one word each
    "$tools/llvm-cov" export --format=lcov --instr-profile "$target/tests.profdata" \
        $(echo $objects | sed 's/ / --object /g') --sources $files > "$1"
fi
# Lines of a file's own unit tests are left out.
# shellcheck disable=SC2086
awk -v files="$(echo $files)" '
    BEGIN {
        n = split(files, name, /[ \n]+/)
        for (i = 1; i <= n; i++) {
            end[name[i]] = 1000000
            for (line = 1; (getline text < name[i]) > 0; line++)
                if (text == "#[cfg(test)]") end[name[i]] = line
        }
    }
    /^SF:/ { file = substr($0, 4); sub(/.*\/rust\//, "rust/", file) }
    /^DA:/ { split(substr($0, 4), at, ","); if (at[1] + 0 < end[file]) count[file, at[1]] += at[2] }
    END {
        for (key in count) { split(key, at, SUBSEP); lines[at[1]]++; hit[at[1]] += count[key] > 0
                             if (!count[key]) missed[at[1]] = missed[at[1]] " " at[2] }
        printf "%-28s %6s %8s %7s\n", "file", "lines", "covered", "percent"
        for (i = 1; i <= n; i++) {
            f = name[i]
            if (!lines[f]) continue # nothing that runs
            printf "%-28s %6d %8d %7.1f\n", f, lines[f], hit[f], 100 * hit[f] / lines[f]
            all += lines[f]; done += hit[f]
        }
        printf "%-28s %6d %8d %7.1f\n", "all", all, done, 100 * done / all
        for (f in missed) print "missed in " f ":" missed[f] > "/dev/stderr"
        exit done < 0.9 * all
    }' "$@"
