//! Neighbors of a query with their scores, in order.

use super::select::key;

/// (score, id) of neighbors; scores are minimised (inner products are negated).
pub type Found = Vec<(f32, u64)>;

/// Sorts by (score, id) and keeps `k`.
pub fn best(found: &mut Found, k: usize) {
    if found.len() > k && k > 0 {
        let order = |a: &(f32, u64), b: &(f32, u64)| (a.0 + 0.0).total_cmp(&(b.0 + 0.0)).then(a.1.cmp(&b.1));
        found.select_nth_unstable_by(k - 1, order);
        found.truncate(k);
    }
    // Integers sort several times faster than pairs: score above, position below; then equal scores by id.
    let mut keys: Vec<u64> = found.iter().zip(0u64..).map(|(f, i)| u64::from(key(f.0 + 0.0)) << 32 | i).collect();
    if found.len() >= u32::MAX as usize {
        found.sort_unstable_by(|a, b| (a.0 + 0.0).total_cmp(&(b.0 + 0.0)).then(a.1.cmp(&b.1)));
        return;
    }
    keys.sort_unstable();
    let mut sorted: Found = keys.iter().map(|&key| found[key as u32 as usize]).collect();
    for equal in sorted.chunk_by_mut(|a, b| a.0 == b.0) {
        if equal.len() > 1 {
            equal.sort_unstable_by_key(|f| f.1);
        }
    }
    *found = sorted;
}
