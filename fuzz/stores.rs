//! The real stores that inputs change: every kind of code, key and value, gaps in the ids, deleted documents, entries in no list.

use knnlm::Metric;
use knnlm::index::{CodeChoice, Params};
use knnlm::keys::KeyRows;
use knnlm::store::{BuildOptions, Datastore, DocumentKey, KeyType, Options, ValueRows, ValueType};
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// What tells one store from another.
pub struct Kind {
    pub dim: usize,
    pub metric: Metric,
    pub keep_keys: Option<KeyType>,
    pub values: ValueType,
    pub code: CodeChoice,
}

/// From dimension 97 on there are second-level codes, and centroids are compared in bytes.
pub const KINDS: [Kind; 4] = [
    Kind {
        dim: 8,
        metric: Metric::L2,
        keep_keys: Some(KeyType::Float16),
        values: ValueType::Uint32,
        code: CodeChoice::Auto,
    },
    Kind { dim: 97, metric: Metric::Ip, keep_keys: None, values: ValueType::Uint64, code: CodeChoice::Auto },
    Kind {
        dim: 100,
        metric: Metric::L2,
        keep_keys: Some(KeyType::Float32),
        values: ValueType::Uint32,
        code: CodeChoice::Flat,
    },
    Kind {
        dim: 8,
        metric: Metric::Ip,
        keep_keys: Some(KeyType::Float16),
        values: ValueType::Uint64,
        code: CodeChoice::Pq { m: 4, bits: 8 },
    },
];

/// The key of an entry.
pub fn key(id: u64, dim: usize) -> impl Iterator<Item = f32> {
    (0..dim as u64).map(move |j| ((id * 31 + j * 17 + id * j % 5) % 23) as f32 - 11.0)
}

/// Makes a store of 63 ids and 8 segment files, the same for each kind but for what the kind says.
pub fn make(path: &Path, kind: &Kind) {
    let options = Options {
        dim: kind.dim,
        metric: kind.metric,
        keep_keys: kind.keep_keys,
        values: kind.values,
        max_value: None,
        attributes: Some("{\"a\": 1}".into()),
        overwrite: false,
    };
    let store = Datastore::create(path, &options).expect("create");
    let add = |n: u64, name: Option<&str>| {
        let first = store.next_id() + store.pending();
        let keys: Vec<f32> = (first..first + n).flat_map(|id| key(id, kind.dim)).collect();
        let values: Vec<u64> = (first..first + n).map(|id| id % 50).collect();
        let short: Vec<u32> = values.iter().map(|&v| v as u32).collect();
        let values = match kind.values {
            ValueType::Uint32 => ValueRows::U32(&short),
            ValueType::Uint64 => ValueRows::U64(&values),
        };
        store.add(KeyRows::F32(&keys), values, name, name.map(|_| "{}")).expect("add");
    };
    let never = AtomicBool::new(false);
    let build = || {
        let params = Params { nlist: Some(2), code: kind.code, ..Params::default() };
        let options = BuildOptions { params, retrain: false, threads: Some(1) };
        store.build(&options, &|_, _, _| (), &never).expect("build");
    };
    for name in ["a", "b", "c", "d"] {
        add(12, Some(name));
    }
    build();
    store.delete(&[DocumentKey::Name("b".into())]).expect("delete");
    store.compact(&|_, _, _| (), &never).expect("compact");
    add(9, Some("e"));
    build();
    add(6, None);
    store.commit().expect("commit");
    store.delete(&[DocumentKey::Name("d".into())]).expect("delete");
}
