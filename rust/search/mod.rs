//! Finds the nearest entries of queries: list scan, re-scoring, and the entries that are in no list yet.
//!
//! In: a [`Corpus`] (views of mapped files) and queries; out: [`Hits`]. The answer does not depend on the batch that
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

pub use crate::exact::Filter;
pub use answer::{entries_scanned, search, search_into};
pub use corpus::Corpus;
pub use explain::{Explanation, InLists, Reason, explain};
pub(crate) use plan::most;
pub use plan::{Calibration, DEFAULT_RECALL, Measured, Setting};
pub use recall::Protocol;
pub(crate) use recall::{calibrate, measure_against};
pub use request::{Hits, HitsMut, Request, Rerank};
pub use trials::Truth;
