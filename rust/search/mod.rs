//! Finds the nearest entries of queries: list scan, re-scoring, and the entries that are in no list yet.
//!
//! In: a `Corpus` (views of mapped files) and queries, with a [`Request`]; out: `Hits`. The answer does not depend on the batch that
//! a query came in nor on the number of threads. Equal distances are ordered by id.

mod ahead;
mod answer;
mod approximate;
mod check;
mod corpus;
#[cfg(test)]
mod disk_tests;
mod explain;
#[cfg(test)]
mod explain_tests;
mod finish;
mod near;
mod places;
mod plan;
mod probes;
mod recall;
#[cfg(test)]
mod recall_tests;
mod request;
mod rescore;
mod scan;
mod sort;
#[cfg(test)]
mod tests;
mod trials;
mod widen;
mod workspace;

pub use explain::{Explanation, InLists, Reason};
pub use plan::DEFAULT_RECALL;
pub use request::{Request, Rerank};
pub use trials::Truth;

pub(crate) use answer::search_into;
pub(crate) use explain::explain;
pub(crate) use plan::{Measured, Setting, most};
pub(crate) use recall::{calibrate, measure_against};
pub(crate) use request::HitsMut;

// Of tests, benchmarks and the binding.
#[doc(hidden)]
pub use {answer::entries_scanned, answer::search, corpus::Corpus, plan::Calibration, recall::Protocol, request::Hits};
