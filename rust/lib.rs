//! Datastore and nearest-neighbor search for nearest-neighbor language models.
//!
//! Float vectors in, unsigned integer payloads out, squared L2 and inner product. The crate knows nothing of tokens
//! or models. A [`store::Datastore`] is a folder on disk: it takes [`keys::KeyRows`] and values, learns an index by
//! [`index::Params`] and answers a [`search::Request`]. What is not shown here (kernels, sections of files, lists) is public
//! for the tests and benchmarks of this repository only; `docs/architecture.md` tells of it.
//!
//! ```
//! use knnlm::keys::KeyRows;
//! use knnlm::search::Request;
//! use knnlm::store::{BuildOptions, Datastore, Options, ValueRows, Values};
//! use std::sync::atomic::AtomicBool;
//!
//! # fn main() -> knnlm::Result<()> {
//! # let temporary = tempfile::tempdir().expect("a folder");
//! # let folder = temporary.path().join("store");
//! let store = Datastore::create(&folder, &Options::new(2, knnlm::Metric::L2))?;
//! let keys = [0.0, 0.0, 1.0, 0.0, 5.0, 5.0]; // three vectors
//! store.add(KeyRows::F32(&keys), ValueRows::U32(&[7, 8, 9]), Some("a document"), None)?;
//! let never = AtomicBool::new(false); // set it to interrupt
//! store.build(&BuildOptions::default(), &|_stage, _done, _total| (), &never)?;
//!
//! let found = store.search(&[0.9, 0.1], &Request { k: 2, ..Request::default() }, None, &never)?;
//! assert_eq!((found.ids, found.values), (vec![1, 0], Values::U32(vec![8, 7])));
//! # Ok(())
//! # }
//! ```
//!
//! `examples/nearest.rs` does the same with more of it.

mod aligned;
mod disk;
pub mod error;
mod exact;
pub mod ids;
pub mod index;
pub mod keys;
mod metric;
pub mod search;
#[doc(hidden)]
pub mod sections;
#[doc(hidden)]
pub mod simd;
pub mod store;
#[doc(hidden)]
pub mod threads;
pub mod work;

#[cfg(feature = "python")]
mod python;

pub use error::{Error, Result};
pub use metric::Metric;
