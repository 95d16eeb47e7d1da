//! Measures what recall the settings of an index reach, against the exact scan.

use super::approximate::{Conditions, approximate};
use super::plan::{Calibration, Setting};
use super::{Corpus, HitsMut, Pool, Request, Rerank, search};
use crate::keys::KeyBlock;
use crate::{Error, Result};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Stored keys that serve as queries.
const QUERIES: usize = 256;
/// Entries before and after a query's own that must not come back either, at most: text near a token repeats it, and what is
/// found there is found more easily than what a query of another text looks for.
const NEARBY: u64 = 2048;
/// Numbers of neighbours that are measured.
const NEIGHBOURS: [usize; 3] = [8, 64, 1024];
/// Settings that are tried; a search may take what lies between them. See [`super::probes::Reach::stop`].
const STOPS: [f32; 12] = [0.5, 0.65, 0.75, 0.82, 0.88, 0.93, 0.98, 1.03, 1.08, 1.15, 1.25, 1.5];

/// Candidates that are tried for k neighbours, as multiples of k.
fn depths(k: usize) -> &'static [f32] {
    match k {
        0..=15 => &[4.0, 8.0, 16.0, 32.0, 64.0],
        16..=255 => &[2.0, 3.0, 5.0, 10.0],
        _ => &[1.0, 1.15, 1.3, 1.5, 1.8, 2.3, 3.2],
    }
}

/// Queries with their exact neighbours, which recall is counted against.
#[derive(Clone, Debug, Default)]
pub struct Truth {
    /// q × d, row-major, finite.
    pub queries: Vec<f32>,
    /// For each query the ids that must not come back, such as its own.
    pub own: Vec<Range<u64>>,
    /// Exact neighbours of each query, `k` each, best first.
    pub ids: Vec<i64>,
    /// How many.
    pub k: usize,
}

/// What a calibration needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// Stored keys that serve as queries, at most.
    pub queries: usize,
    /// Exact neighbours of each.
    pub neighbours: usize,
    /// Entries before and after its own that it leaves out.
    pub nearby: u64,
}

impl Protocol {
    /// For `n` entries.
    pub fn of(n: u64) -> Protocol {
        let neighbours = NEIGHBOURS.iter().copied().filter(|&k| 10 * k as u64 <= n).max().unwrap_or(1);
        Protocol { queries: QUERIES, neighbours, nearby: NEARBY.min(n / 64) }
    }

    /// The ids that the query whose entry is `id` leaves out.
    pub fn own(&self, id: u64) -> Range<u64> {
        id.saturating_sub(self.nearby)..id.saturating_add(self.nearby + 1)
    }
}

/// [`measure_against`] stored keys, their own entries and those nearby left out; the corpus must have all raw keys.
///
/// # Errors
/// As [`search`]; `progress` hears (settings measured, settings).
pub fn calibrate(
    corpus: &mut Corpus,
    pool: &Pool,
    progress: &dyn Fn(u64, u64),
    cancel: &AtomicBool,
) -> Result<Calibration> {
    if corpus.index.is_none() {
        return Ok(Calibration::default());
    }
    let n = corpus.keys.iter().map(KeyBlock::n).sum::<usize>();
    let protocol = Protocol::of(n as u64);
    let (queries, own) = sample(corpus, &protocol);
    let k = protocol.neighbours;
    let request = Request { k, exact: true, exclude: Some(&own), ..Request::default() };
    let ids = search(corpus, &queries, &request, pool, cancel)?.ids;
    measure_against(corpus, &Truth { queries, own, ids, k }, pool, progress, cancel)
}

/// Measures the index of a corpus, which needs no raw keys; of the settings, those that no cheaper one equals are kept.
///
/// # Errors
/// As [`search`]; `Argument` for exact neighbours that do not fit; `progress` hears (settings measured, settings).
pub fn measure_against(
    corpus: &mut Corpus,
    truth: &Truth,
    pool: &Pool,
    progress: &dyn Fn(u64, u64),
    cancel: &AtomicBool,
) -> Result<Calibration> {
    let Some(coded) = corpus.index.as_ref().map(|(codebook, _)| codebook.second_bits() > 0) else {
        return Ok(Calibration::default());
    };
    let (queries, own, most) = (&truth.queries, &truth.own, truth.k);
    if most == 0 || own.len().checked_mul(most) != Some(truth.ids.len()) {
        return Err(Error::Argument(format!(
            "expected {most} exact neighbours of each of {} queries, found {}",
            own.len(),
            truth.ids.len()
        )));
    }
    let tried: Vec<(usize, f32, f32)> = NEIGHBOURS
        .iter()
        .filter(|&&k| k <= most)
        .flat_map(|&k| {
            let depths = if coded { depths(k) } else { &[1.0] };
            depths.iter().flat_map(move |&depth| STOPS.iter().map(move |&stop| (k, stop, depth)))
        })
        .collect();
    let mut rows: Vec<Setting> = Vec::with_capacity(tried.len());
    for (done, &(k, stop, depth)) in tried.iter().enumerate() {
        progress(done as u64, tried.len() as u64);
        let setting = Setting { k, stop, depth, recall: 1.0, scanned: 0.0 };
        let alone = Arc::new(Calibration { queries: 0, rows: vec![setting] });
        corpus.index = corpus.index.take().map(|(book, lists)| (book.calibrated(Some(alone)), lists));
        let rerank = if coded { Rerank::Code } else { Rerank::None };
        // A recall of zero takes the only row there is.
        let request = Request { k, rerank, recall: Some(f32::MIN_POSITIVE), exclude: Some(own), ..Request::default() };
        let (recall, scanned) = measure(corpus, queries, &request, &truth.ids, most, pool, cancel)?;
        rows.push(Setting { recall, scanned, ..setting });
    }
    Ok(Calibration { queries: own.len(), rows: front(rows) })
}

/// Recall@k and entries scanned per query.
fn measure(
    corpus: &Corpus,
    queries: &[f32],
    request: &Request,
    exact: &[i64],
    most: usize,
    pool: &Pool,
    cancel: &AtomicBool,
) -> Result<(f32, f32)> {
    let kernels = super::check(corpus, queries, request)?;
    let (k, q) = (request.k, queries.len() / corpus.d);
    let (mut distances, mut ids) = (vec![0.0; q * k], vec![0; q * k]);
    let mut out = HitsMut { distances: &mut distances, ids: &mut ids };
    let scanned = approximate(corpus, queries, request, &kernels, pool, cancel, &mut out, Conditions::now())?;
    let mut hits = 0usize;
    for (found, exact) in ids.chunks_exact(k).zip(exact.chunks_exact(most)) {
        let mut wanted: Vec<i64> = exact[..k].to_vec();
        wanted.sort_unstable();
        hits += found.iter().filter(|&id| wanted.binary_search(id).is_ok()).count();
    }
    let scanned = scanned.iter().sum::<u64>() as f32 / q.max(1) as f32;
    Ok((hits as f32 / (q * k).max(1) as f32, scanned))
}

/// Stored keys at equal distances, and the ids that each leaves out.
fn sample(corpus: &Corpus, protocol: &Protocol) -> (Vec<f32>, Vec<Range<u64>>) {
    let rows = super::rows::Rows::new(&corpus.keys);
    let wanted = protocol.queries.min(rows.len());
    let mut queries = vec![0f32; wanted * corpus.d];
    let mut own = Vec::with_capacity(wanted);
    for (i, query) in queries.chunks_exact_mut(corpus.d).enumerate() {
        let row = ((2 * i + 1) as u128 * rows.len() as u128 / (2 * wanted) as u128) as usize;
        rows.read(row, query);
        own.push(protocol.own(rows.id(row)));
    }
    (queries, own)
}

/// For each k, in ascending order of cost, the settings that find more than every cheaper one.
fn front(mut rows: Vec<Setting>) -> Vec<Setting> {
    rows.sort_by(|a, b| a.k.cmp(&b.k).then(a.cost().total_cmp(&b.cost())));
    let mut kept: Vec<Setting> = Vec::new();
    for row in rows {
        if kept.last().is_none_or(|last| last.k != row.k || row.recall > last.recall) {
            kept.push(row);
        }
    }
    kept
}
