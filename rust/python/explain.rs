//! An explanation as a dict of plain values.

use crate::search::{Explanation, Reason, Rerank};
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// The keys are those of `_Explained` in `_core.pyi`.
pub fn dict<'py>(py: Python<'py>, told: &Explanation) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("reason", reason(told.reason))?;
    dict.set_item("rank", told.rank)?;
    dict.set_item("distance", told.distance)?;
    dict.set_item("kth_distance", told.kth_distance)?;
    dict.set_item("exact_distance", told.exact_distance)?;
    dict.set_item("scanned_exactly", told.scanned_exactly)?;
    let Some(lists) = &told.lists else {
        dict.set_item("lists", py.None())?;
        return Ok(dict);
    };
    let inner = PyDict::new(py);
    inner.set_item("nlist", lists.nlist)?;
    inner.set_item("list", lists.list)?;
    inner.set_item("list_entries", lists.list_entries)?;
    inner.set_item("list_rank", lists.list_rank)?;
    inner.set_item("list_distance", lists.list_distance)?;
    inner.set_item("probed", lists.probed)?;
    inner.set_item("nprobe", lists.nprobe)?;
    inner.set_item("lists_scanned", lists.lists_scanned)?;
    inner.set_item("reach", lists.reach)?;
    inner.set_item("first_limit", lists.first_limit)?;
    inner.set_item("last_limit", lists.last_limit)?;
    inner.set_item("first_score", lists.first_score)?;
    inner.set_item("candidates", lists.candidates)?;
    inner.set_item("candidate", lists.candidate)?;
    inner.set_item("second_score", lists.second_score)?;
    inner.set_item("rerank", rerank(lists.rerank))?;
    dict.set_item("lists", inner)?;
    Ok(dict)
}

fn reason(reason: Reason) -> &'static str {
    match reason {
        Reason::Returned => "returned",
        Reason::Unknown => "unknown_id",
        Reason::Deleted => "deleted",
        Reason::Excluded => "excluded",
        Reason::NotAllowed => "not_allowed",
        Reason::Denied => "denied",
        Reason::ListNotProbed => "list_not_probed",
        Reason::ListOutOfReach => "list_out_of_reach",
        Reason::ListLeftOutByEstimate => "list_left_out_by_estimate",
        Reason::ScoreBeyondLimit => "score_beyond_limit",
        Reason::CutAtRescoring => "cut_at_rescoring",
        Reason::BeyondK => "beyond_k",
    }
}

fn rerank(rerank: Rerank) -> &'static str {
    match rerank {
        Rerank::Auto | Rerank::None => "none",
        Rerank::Code => "code",
        Rerank::Keys => "keys",
    }
}
