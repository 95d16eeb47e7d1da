//! Which entries a query may return: what is deleted, and what it excludes, allows or denies itself.
//!
//! Asked inside the scans, of candidates that a query's limit lets pass only, so that k others still come back.

use crate::ids::{IdSet, contains};
use std::ops::Range;

/// What the queries of one task may return. The slices have one element for each query.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter<'f> {
    /// Ids that no query returns.
    pub deleted: &'f [Range<u64>],
    /// An id range that a query leaves out.
    pub exclude: Option<&'f [Range<u64>]>,
    /// Ids that a query is confined to.
    pub allow: Option<&'f [IdSet]>,
    /// Ids that a query leaves out.
    pub deny: Option<&'f [IdSet]>,
}

impl<'f> Filter<'f> {
    /// The filter of some of the queries.
    pub fn of_queries(&self, span: &Range<usize>) -> Filter<'f> {
        Filter {
            deleted: self.deleted,
            exclude: self.exclude.map(|all| &all[span.clone()]),
            allow: self.allow.map(|all| &all[span.clone()]),
            deny: self.deny.map(|all| &all[span.clone()]),
        }
    }

    /// Whether it lets everything pass of some entries, of which some may be deleted or none are.
    pub fn is_open(&self, may_be_deleted: bool) -> bool {
        (!may_be_deleted || self.deleted.is_empty())
            && self.exclude.is_none()
            && self.allow.is_none()
            && self.deny.is_none()
    }

    /// Whether `query` may return the entry `id`.
    pub fn admits(&self, query: usize, id: u64) -> bool {
        !contains(self.deleted, id)
            && self.exclude.is_none_or(|all| !all[query].contains(&id))
            && self.allow.is_none_or(|all| contains(&all[query], id))
            && self.deny.is_none_or(|all| !contains(&all[query], id))
    }
}
