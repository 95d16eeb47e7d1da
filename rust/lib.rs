//! Datastore and nearest-neighbour search for nearest-neighbour language models.
//!
//! Float vectors in, unsigned integer payloads out, squared L2 and inner product. The crate knows nothing of tokens
//! or models. Pipeline: [`store`] keeps entries on disk, [`index`] turns keys into lists of codes, [`search`] finds
//! neighbours with the kernels of [`simd`].

mod aligned;
mod disk;
pub mod error;
mod exact;
pub mod ids;
pub mod index;
pub mod keys;
pub mod metric;
pub mod search;
pub mod sections;
pub mod simd;
pub mod store;
pub mod threads;
pub mod work;

#[cfg(feature = "python")]
mod python;

pub use error::{Error, Result};
pub use metric::Metric;
