//! A store without Python: vectors go in with a number each, and the nearest of a query come out.
//!
//!     cargo run --release --example nearest

use knnlm::Metric;
use knnlm::keys::KeyRows;
use knnlm::search::Request;
use knnlm::store::{BuildOptions, Datastore, Options, ValueRows, Values};
use std::sync::atomic::AtomicBool;

const DIM: usize = 32;

fn main() -> knnlm::Result<()> {
    let folder = std::env::temp_dir().join(format!("knnlm-nearest-{}", std::process::id()));
    let store = Datastore::create(&folder, &Options::new(DIM, Metric::L2))?;

    // Two documents of 5,000 entries each. A value is any number: here how often the entry was counted.
    for name in ["waves", "steps"] {
        let phase = if name == "waves" { 0.01 } else { 0.3 };
        let keys: Vec<f32> = (0..5_000 * DIM).map(|i| (i as f32 * phase).sin() + (i % 7) as f32).collect();
        let values: Vec<u32> = (0..5_000).collect();
        store.add(KeyRows::F32(&keys), ValueRows::U32(&values), Some(name), None)?;
    }

    // Learns codes and writes lists; the answer to Ctrl-C would be to set the flag.
    let never = AtomicBool::new(false);
    store.build(&BuildOptions::default(), &|stage, done, total| eprintln!("{stage}: {done} of {total}"), &never)?;

    let query: Vec<f32> = (0..DIM).map(|i| (i as f32 * 0.01).sin() + (i % 7) as f32).collect();
    let request = Request { k: 3, ..Request::default() };
    let found = store.search(&query, &request, None, &never)?;
    let Values::U32(values) = found.values else { unreachable!("values are u32 unless asked otherwise") };
    for ((id, value), distance) in found.ids.iter().zip(values).zip(&found.distances) {
        println!("entry {id}, value {value}: squared distance {distance}");
    }
    println!("{:?}", store.explain(&query, &request, 4_000, None, &never)?.reason);

    std::fs::remove_dir_all(&folder).map_err(|error| knnlm::Error::Argument(error.to_string()))
}
