//! Sorts the neighbors of a query: integers with a score above and a position below.
//!
//! Two passes over the 16 highest bits in which the scores differ, then insertion: twice as fast as a comparison sort for a
//! thousand neighbors. Scores that lie closer than these bits tell are few, or a comparison sort takes over.

/// Fewer are sorted by comparison.
const FEW: usize = 96;
/// Moves of an element that insertion may take, on average.
const MOVES: usize = 8;

/// Sorts in ascending order; `spare` is scratch.
pub fn sort(keys: &mut Vec<u64>, spare: &mut Vec<u64>) {
    let n = keys.len();
    let (Some(&low), Some(&high)) = (keys.iter().min(), keys.iter().max()) else { return };
    if n < FEW || n > u32::MAX as usize {
        return keys.sort_unstable();
    }
    let shift = (u64::BITS - (high - low).leading_zeros()).saturating_sub(16);
    let digit = |key: u64, pass: u32| ((key - low) >> shift >> (8 * pass)) as usize & 255;
    let mut starts = [[0u32; 256]; 2];
    for &key in keys.iter() {
        starts[0][digit(key, 0)] += 1;
        starts[1][digit(key, 1)] += 1;
    }
    for starts in &mut starts {
        let mut sum = 0;
        starts.iter_mut().for_each(|start| sum += std::mem::replace(start, sum));
    }
    spare.resize(n, 0);
    for (pass, starts) in (0u32..).zip(&mut starts) {
        for &key in keys.iter() {
            let start = &mut starts[digit(key, pass)];
            spare[*start as usize] = key;
            *start += 1;
        }
        std::mem::swap(keys, spare);
    }
    let mut moves = MOVES * n;
    for i in 1..n {
        let key = keys[i];
        let mut at = i;
        while at > 0 && keys[at - 1] > key {
            keys[at] = keys[at - 1];
            at -= 1;
        }
        keys[at] = key;
        if i - at > moves {
            return keys.sort_unstable();
        }
        moves -= i - at;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sorted(mut keys: Vec<u64>) -> Vec<u64> {
        keys.sort_unstable();
        keys
    }

    proptest! {
        #[test]
        fn sorts(seeds in prop::collection::vec(any::<u32>(), 0..1500), bits in 0u32..33, base in any::<u32>()) {
            // Scores that differ in some bits only, many of them equal when these are few.
            let score = |x: u32| base.wrapping_add(x.checked_shr(32 - bits).unwrap_or(0));
            let keys: Vec<u64> = seeds.iter().zip(0u64..).map(|(&x, i)| u64::from(score(x)) << 32 | i).collect();
            let (mut got, mut spare) = (keys.clone(), vec![7; 3]);
            sort(&mut got, &mut spare);
            prop_assert_eq!(got, sorted(keys));
        }
    }

    #[test]
    fn close_scores_beside_a_far_one_are_sorted_too() {
        let n = 20_000u64;
        let mut keys: Vec<u64> = (0..n).map(|i| (n - i) << 20 | 1 << 62).collect();
        keys.push(3);
        let mut got = keys.clone();
        sort(&mut got, &mut Vec::new());
        assert_eq!(got, sorted(keys));
    }
}
