//! Small stores with known contents.

use knnlm::Metric;
use knnlm::keys::KeyRows;
use knnlm::store::{Datastore, KeyType, Options, ValueRows, ValueType};

/// Options of a store of dimension `dim`.
pub fn options(dim: usize) -> Options {
    Options {
        dim,
        metric: Metric::L2,
        keep_keys: None,
        values: ValueType::Uint32,
        max_value: None,
        attributes: None,
        overwrite: false,
    }
}

/// The same, keeping raw keys.
pub fn keeping(dim: usize, keys: KeyType) -> Options {
    Options { keep_keys: Some(keys), ..options(dim) }
}

/// Key of entry `id`: exact in f16, no two alike.
pub fn key(dim: usize, id: u64) -> Vec<f32> {
    let mix = |x: u64| (x ^ x >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (0..dim as u64).map(|j| (mix(mix(id * 131 + j + 1)) >> 40) as u32 % 97).map(|x| x as f32 / 4.0 - 12.0).collect()
}

/// Value of entry `id`.
pub fn value(id: u64) -> u32 {
    (id * 2_654_435_761 % 50_000) as u32
}

/// Adds entries with their known keys and values.
pub fn add(
    store: &Datastore,
    n: u64,
    document: Option<&str>,
    metadata: Option<&str>,
) -> knnlm::Result<std::ops::Range<u64>> {
    let first = store.next_id() + store.pending();
    let keys: Vec<f32> = (first..first + n).flat_map(|id| key(store.dim(), id)).collect();
    let values: Vec<u32> = (first..first + n).map(value).collect();
    store.add(KeyRows::F32(&keys), ValueRows::U32(&values), document, metadata)
}

/// Asserts that the first `n` entries of a store are the known ones, with raw keys if it has them.
pub fn assert_entries(store: &Datastore, n: u64) {
    assert_eq!(store.len(), n);
    let values: Vec<u32> = (0..n).map(value).collect();
    assert_eq!(store.values(0..n).expect("values"), knnlm::store::Values::U32(values));
    if let Ok(keys) = store.keys(0..n) {
        let want: Vec<f32> = (0..n).flat_map(|id| key(store.dim(), id)).collect();
        assert!(keys == want, "raw keys differ");
    }
}
