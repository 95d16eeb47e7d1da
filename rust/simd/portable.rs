//! Kernels that the compiler vectorises well: one body, compiled once per instruction set.
//!
//! No fused multiply-add and a fixed order of additions: every instruction set gives the same bits.

use super::operands::{ByteKeys, FACTOR_BYTES, LANES, LevelQuery, Scores, TILE_LANES, float_at};

/// Fast Walsh–Hadamard transform of `x` in place, times `scale`; the length is a power of two.
#[inline(always)]
pub fn hadamard(x: &mut [f32], scale: f32) {
    debug_assert!(x.len().is_power_of_two());
    let mut half = x.len() / 2;
    while half >= 16 {
        for pair in x.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.as_chunks_mut::<16>().0.iter_mut().zip(high.as_chunks_mut::<16>().0) {
                for (a, b) in a.iter_mut().zip(b) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
        }
        half /= 2;
    }
    while half >= 1 {
        for pair in x.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half /= 2;
    }
    for x in x {
        *x *= scale;
    }
}

/// Number of values at most `limit` (NaN is not).
#[inline(always)]
pub fn count_at_most(values: &[f32], limit: f32) -> usize {
    let mut total = 0;
    for chunk in values.chunks(1 << 16) {
        total += chunk.iter().map(|&v| u32::from(v <= limit)).sum::<u32>() as usize;
    }
    total
}

/// Inner product of each of the `c` words of a sub-quantiser (`words`: dsub × c) with `part` (dsub), into `out` (c).
#[inline(always)]
pub fn word_products(part: &[f32], words: &[f32], out: &mut [f32]) {
    out.fill(0.0);
    for (&x, row) in part.iter().zip(words.chunks_exact(out.len())) {
        for (o, &w) in out.iter_mut().zip(row) {
            *o += x * w;
        }
    }
}

/// Look-up table of a query for 4-bit codes; see [`super::Kernels::tables4`].
#[inline(always)]
pub fn tables4(query: &[f32], words: &[f32], products: &mut [f32], table: &mut [u8]) -> (f32, f32) {
    let products = products.as_chunks_mut::<16>().0;
    let dsub = query.len() / products.len();
    let mut span = 0f32;
    let mut bias = 0f32;
    for ((out, part), words) in products.iter_mut().zip(query.chunks_exact(dsub)).zip(words.chunks_exact(dsub * 16)) {
        let mut sums = [0f32; 16];
        for (&x, row) in part.iter().zip(words.as_chunks::<16>().0) {
            for (o, &w) in sums.iter_mut().zip(row) {
                *o += x * w;
            }
        }
        let low = least16(sums);
        let width = -least16(sums.map(|x| -x)) - low;
        span = if width > span { width } else { span };
        bias += low;
        for (o, x) in out.iter_mut().zip(sums) {
            *o = x - low;
        }
    }
    let inverse = if span > 0.0 { 127.0 / span } else { 0.0 };
    for (out, products) in table.as_chunks_mut::<16>().0.iter_mut().zip(products) {
        for (o, x) in out.iter_mut().zip(products) {
            *o = (*x * inverse + 0.5) as i32 as u8;
        }
    }
    (span / 127.0, bias)
}

/// Rounds to 255 steps; see [`super::Kernels::round_bytes`].
#[inline(always)]
pub fn round_bytes(x: &[f32], out: &mut [i8]) -> (f32, i32) {
    let mut most = [0f32; 16];
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        for (m, x) in most.iter_mut().zip(chunk) {
            let size = x.abs();
            *m = if size > *m { size } else { *m };
        }
    }
    let largest = most.iter().chain(rest).fold(0f32, |most, x| most.max(x.abs()));
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    let mut sum = 0i32;
    for (o, &x) in out.iter_mut().zip(x) {
        // Half a step away from zero, then cut: rounds to the nearest.
        let number = (x * inverse + 0.5f32.copysign(x)) as i32;
        sum += number;
        *o = number as i8;
    }
    (largest / 127.0, sum)
}

/// Multiplies in place.
#[inline(always)]
pub fn multiply(x: &mut [f32], factors: &[f32]) {
    for (x, f) in x.iter_mut().zip(factors) {
        *x *= f;
    }
}

/// The least of every c-th value; see [`super::Kernels::least_of_classes`].
#[inline(always)]
pub fn least_of_classes(values: &[f32], out: &mut [f32]) {
    out.fill(f32::INFINITY);
    for row in values.chunks(out.len()) {
        for (o, &x) in out.iter_mut().zip(row) {
            *o = if x < *o { x } else { *o };
        }
    }
}

/// The greatest `entry − first`, modulo 2³².
#[inline(always)]
pub fn greatest_distance(entries: &[u32], first: u32) -> u32 {
    entries.iter().fold(0, |most, entry| most.max(entry.wrapping_sub(first)))
}

/// Number of the word of a sub-quantiser (`words`: dsub × C) nearest to `part` (dsub); the first of equals.
#[inline(always)]
pub fn nearest_word<const C: usize>(part: &[f32], words: &[f32]) -> usize {
    let mut distances = [0f32; C];
    for (&x, row) in part.iter().zip(words.as_chunks::<C>().0) {
        for (o, &w) in distances.iter_mut().zip(row) {
            let e = x - w;
            *o += e * e;
        }
    }
    let mut least = f32::INFINITY;
    for &v in &distances {
        least = if v < least { v } else { least };
    }
    distances.iter().position(|&v| v == least).unwrap_or(0)
}

/// Codes of `x` (m × dsub): for each sub-quantiser the nearest of its C words (`words`: m × dsub × C).
#[inline(always)]
pub fn encode<const C: usize>(x: &[f32], dsub: usize, words: &[f32], codes: &mut [u8]) {
    for ((part, words), code) in x.chunks_exact(dsub).zip(words.chunks_exact(dsub * C)).zip(codes) {
        *code = nearest_word::<C>(part, words) as u8;
    }
}

/// Copies 16 rows of length `d` into a panel (d × 16).
#[inline(always)]
pub fn pack_panel(rows: &[f32], d: usize, panel: &mut [f32]) {
    let row: [&[f32]; LANES] = std::array::from_fn(|lane| &rows[lane * d..(lane + 1) * d]);
    for (t, out) in panel.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        for lane in 0..LANES {
            out[lane] = row[lane][t];
        }
    }
}

/// Product of a second-level code with a query; see [`super::Kernels::dot4`].
#[inline(always)]
pub fn dot4(codes: &[u8], query: &[i8], levels: &[u8; 16]) -> i32 {
    let mut sum = 0i32;
    for (unit, query) in codes.as_chunks::<64>().0.iter().zip(query.as_chunks::<128>().0) {
        let (low, high) = query.split_at(64);
        for ((&code, &l), &h) in unit.iter().zip(low).zip(high) {
            sum += i32::from(levels[usize::from(code & 15)]) * i32::from(l);
            sum += i32::from(levels[usize::from(code >> 4)]) * i32::from(h);
        }
    }
    sum
}

/// Scan of scalar codes; see [`super::Kernels::scan_levels`].
#[inline(always)]
pub fn scan_levels(blocks: &[u8], query: &LevelQuery, first: u32, scores: &mut [f32], entries: &mut [u32]) -> usize {
    let (numbers, levels) = (query.bytes.numbers.as_chunks::<8>().0, query.bytes.levels);
    let mut found = 0;
    for (b, block) in blocks.chunks_exact(numbers.len() * 64 + FACTOR_BYTES).enumerate() {
        let (codes, factors) = block.split_at(numbers.len() * 64);
        let mut dots = [0i32; LANES];
        for (unit, numbers) in codes.as_chunks::<64>().0.iter().zip(numbers) {
            for (dot, codes) in dots.iter_mut().zip(unit.as_chunks::<4>().0) {
                for j in 0..4 {
                    *dot += i32::from(levels[usize::from(codes[j] & 15)]) * i32::from(numbers[j]);
                    *dot += i32::from(levels[usize::from(codes[j] >> 4)]) * i32::from(numbers[4 + j]);
                }
            }
        }
        let sums = dots.map(|dot| query.bytes.scale * (dot - query.bytes.bias) as f32);
        let to = first + (b * LANES) as u32;
        found += keep(&sums, factors, query.base, query.limit, to, &mut scores[found..], &mut entries[found..]);
    }
    found
}

/// For each x the number of borders that it is above; see [`super::Kernels::count_borders`].
#[inline(always)]
pub fn count_borders(x: &[f32], factor: f32, borders: &[f32; 15], codes: &mut [u8]) {
    for (codes, x) in codes.chunks_mut(64).zip(x.chunks(64)) {
        let mut counts = [0u32; 64];
        for &border in borders {
            for (count, &x) in counts.iter_mut().zip(x) {
                *count += u32::from(x * factor > border);
            }
        }
        codes.iter_mut().zip(counts).take(x.len()).for_each(|(code, count)| *code = count as u8);
    }
}

/// Integer products of a row with chosen keys; see [`super::Kernels::score_rows8`].
#[inline(always)]
pub fn score_rows8(row: &[i8], keys: ByteKeys, picks: &[u32], (factor, bias): (f32, i32), out: &mut [f32]) {
    let width = row.len();
    for (&pick, out) in picks.iter().zip(out) {
        let pick = pick as usize;
        let key = &keys.numbers[pick * width..(pick + 1) * width];
        let dot: i32 = key.iter().zip(row).map(|(&k, &x)| i32::from(k) * i32::from(x)).sum();
        *out = keys.offsets[pick] + (factor * keys.scales[pick]) * (dot - bias) as f32;
    }
}

/// Integer products of rows with two panels, turned into scores; see [`super::Kernels::score_tile8`].
#[inline(always)]
pub fn score_tile8(rows: &[i8], width: usize, keys: ByteKeys, factors: &[(f32, i32)], tile: &mut Scores) {
    let (q, numbers) = (factors.len(), rows.as_chunks::<4>().0);
    for i in 0..q {
        let mut dots = [0i32; TILE_LANES];
        for (dots, panel) in dots.as_chunks_mut::<LANES>().0.iter_mut().zip(keys.numbers.chunks_exact(LANES * width)) {
            for (queries, keys) in numbers.chunks_exact(q).zip(panel.as_chunks::<64>().0) {
                let query = queries[i];
                for (dot, key) in dots.iter_mut().zip(keys.as_chunks::<4>().0) {
                    for t in 0..4 {
                        *dot += i32::from(key[t]) * i32::from(query[t]);
                    }
                }
            }
        }
        scores_of(&dots, keys, factors[i], &mut tile[i]);
    }
}

/// The end of [`score_tile8`]: score = offset + (factor · scale) · (dot − bias).
#[inline(always)]
pub fn scores_of(dots: &[i32; TILE_LANES], keys: ByteKeys, (factor, bias): (f32, i32), out: &mut [f32; TILE_LANES]) {
    for j in 0..TILE_LANES {
        out[j] = keys.offsets[j] + (factor * keys.scales[j]) * (dots[j] - bias) as f32;
    }
}

/// Keeps scores at most `limit`, and their entries, in order and in place; returns their number.
#[inline(always)]
pub fn keep_at_most(scores: &mut [f32], entries: &mut [u32], limit: f32) -> usize {
    let mut kept = 0;
    for i in 0..scores.len().min(entries.len()) {
        let (score, entry) = (scores[i], entries[i]);
        scores[kept] = score;
        entries[kept] = entry;
        kept += usize::from(score <= limit);
    }
    kept
}

/// Writes the positions of values at most `limit` to `out` in order; returns their number.
#[inline(always)]
pub fn find_at_most(values: &[f32], limit: f32, out: &mut [u32]) -> usize {
    let mut found = 0;
    for (i, &value) in values.iter().enumerate() {
        out[found] = i as u32;
        found += usize::from(value <= limit);
    }
    found
}

/// The greatest value at most `limit`; −∞ if there is none.
#[inline(always)]
pub fn greatest_at_most(values: &[f32], limit: f32) -> f32 {
    let mut most = [f32::NEG_INFINITY; 32];
    let (chunks, rest) = values.as_chunks::<32>();
    for chunk in chunks {
        for (most, &value) in most.iter_mut().zip(chunk) {
            let value = if value <= limit { value } else { f32::NEG_INFINITY };
            *most = if value > *most { value } else { *most };
        }
    }
    let rest = rest.iter().copied().filter(|&value| value <= limit);
    most.into_iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
}

/// The least value (no NaN); +∞ if there is none.
#[inline(always)]
pub fn least(values: &[f32]) -> f32 {
    let mut least = [f32::INFINITY; 32];
    let (chunks, rest) = values.as_chunks::<32>();
    for chunk in chunks {
        for (least, &value) in least.iter_mut().zip(chunk) {
            *least = if value < *least { value } else { *least };
        }
    }
    let both: [f32; LANES] =
        std::array::from_fn(|i| if least[i] < least[i + LANES] { least[i] } else { least[i + LANES] });
    rest.iter().fold(least16(both), |a, &b| if b < a { b } else { a })
}

/// The least of 16 values, halves against halves.
#[inline(always)]
fn least16(mut x: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half >= 1 {
        for i in 0..half {
            x[i] = if x[i + half] < x[i] { x[i + half] } else { x[i] };
        }
        half /= 2;
    }
    x[0]
}

/// The end of a block: scores `(base + A) + B * sum`, those at most `limit` are kept.
#[inline(always)]
pub fn keep(
    sums: &[f32; LANES],
    factors: &[u8],
    base: f32,
    limit: f32,
    first: u32,
    scores: &mut [f32],
    entries: &mut [u32],
) -> usize {
    let mut found = 0;
    for (v, sum) in sums.iter().enumerate() {
        let score = (base + float_at(factors, v)) + float_at(factors, LANES + v) * sum;
        if score <= limit {
            scores[found] = score;
            entries[found] = first + v as u32;
            found += 1;
        }
    }
    found
}
