//! Measures what recall the settings of an index reach, against the exact scan.

use super::answer::search;
use super::corpus::Corpus;
use super::plan::{Calibration, Setting};
use super::request::{Request, Rerank};
use super::trials::{NEGLIGIBLE, Trial, Trials, Truth, front};
use crate::exact::Rows;
use crate::ids::contains;
use crate::index::{Codebook, Lists};
use crate::threads::Pool;
use crate::{Error, Result};
use std::ops::Range;
use std::sync::atomic::AtomicBool;

/// Stored keys that serve as queries.
const QUERIES: usize = 256;
/// Entries before and after a query's own that must not come back either, at most: text near a token repeats it, and what is
/// found there is found more easily than what a query of another text looks for.
const NEARBY: u64 = 2048;
/// Numbers of neighbors that are measured; a search for others takes what lies between them.
const NEIGHBORS: [usize; 4] = [1, 8, 64, 1024];
/// Settings that are tried; a search may take what lies between them. See [`super::probes::Reach::stop`].
const STOPS: [f32; 12] = [0.5, 0.65, 0.75, 0.82, 0.88, 0.93, 0.98, 1.03, 1.08, 1.15, 1.25, 1.5];

/// Candidates that are tried for k neighbors, as multiples of k, where they are scored again. Where only raw keys do that, every
/// second will do: without codes to tell candidates apart, a search by raw keys takes many.
fn depths(k: usize, coded: bool) -> impl Iterator<Item = f32> {
    let all: &[f32] = match k {
        0..=1 => &[16.0, 64.0, 256.0],
        2..=15 => &[4.0, 8.0, 16.0, 32.0, 64.0],
        16..=255 => &[2.0, 3.0, 5.0, 10.0],
        _ => &[1.0, 1.15, 1.3, 1.5, 1.8, 2.3, 3.2],
    };
    let last = all.len() - 1;
    (0..=last).filter(move |i| coded || ((last - i).is_multiple_of(2) && all[*i] > 1.0)).map(|i| all[i])
}

/// More candidates, for raw keys only: what coarse codes miss, they find among more. The first that suffices is the last tried.
fn deeper(k: usize) -> &'static [f32] {
    match k {
        0..=1 => &[1000.0, 4000.0],
        2..=15 => &[200.0, 600.0],
        16..=255 => &[30.0, 100.0],
        _ => &[6.0, 12.0],
    }
}

/// Recall from which no more candidates are tried.
const SUFFICIENT: f32 = 0.995;
/// Candidates of a query that are tried at most.
const MOST_CANDIDATES: f32 = 32_768.0;
/// Nanoseconds to score a candidate again by its second-level code.
const CODE_NANOSECONDS: f32 = 15.0;

/// What a calibration needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// Stored keys that serve as queries, at most.
    pub queries: usize,
    /// Exact neighbors of each.
    pub neighbors: usize,
    /// Entries before and after its own that it leaves out.
    pub nearby: u64,
}

impl Protocol {
    /// For `n` entries.
    pub fn of(n: u64) -> Protocol {
        let neighbors = NEIGHBORS.iter().copied().filter(|&k| 2 * k as u64 <= n).max();
        Protocol { queries: QUERIES, neighbors: neighbors.unwrap_or(1), nearby: NEARBY.min(n / 64) }
    }

    /// The ids that the query whose entry is `id` leaves out.
    pub fn own(&self, id: u64) -> Range<u64> {
        id.saturating_sub(self.nearby)..id.saturating_add(self.nearby + 1)
    }
}

/// [`measure_against`] stored keys, their own entries and those nearby left out; the corpus must have all raw keys. `keys`:
/// whether they stay.
///
/// # Errors
/// As [`search`]; `progress` hears (settings measured, settings).
pub fn calibrate(
    corpus: &Corpus,
    keys: bool,
    pool: &Pool,
    progress: &dyn Fn(u64, u64),
    cancel: &AtomicBool,
) -> Result<Calibration> {
    let n = corpus.index.as_ref().map_or(0, |(codebook, lists)| live(codebook, lists));
    if n < 2 {
        return Ok(Calibration::default());
    }
    let protocol = Protocol::of(n);
    let (queries, own) = sample(corpus, &protocol);
    let k = protocol.neighbors;
    let request = Request { k, exact: true, exclude: Some(&own), ..Request::default() };
    let ids = search(corpus, &queries, &request, pool, cancel)?.ids;
    measure_against(corpus, &Truth { queries, own, ids, k }, keys, pool, progress, cancel)
}

/// Measures the index of a corpus, which needs no raw keys; of the settings, those that no cheaper one equals are kept.
/// `keys`: whether searches will have raw keys to score candidates with. Without a query nothing is measured: the default.
///
/// # Errors
/// As [`search`]; `Argument` for exact neighbors that do not fit; `progress` hears (settings measured, settings).
pub fn measure_against(
    corpus: &Corpus,
    truth: &Truth,
    keys: bool,
    pool: &Pool,
    progress: &dyn Fn(u64, u64),
    cancel: &AtomicBool,
) -> Result<Calibration> {
    let Some((codebook, lists)) = &corpus.index else { return Ok(Calibration::default()) };
    let (own, most) = (&truth.own, truth.k);
    if most == 0 || own.len().checked_mul(most) != Some(truth.ids.len()) {
        return Err(Error::Argument(format!(
            "expected {most} exact neighbors of each of {} queries, found {}",
            own.len(),
            truth.ids.len()
        )));
    }
    if own.is_empty() {
        return Ok(Calibration::default()); // nothing to measure with
    }
    let entries = lists.iter().map(Lists::len).sum::<usize>();
    let (coded, d) = (codebook.second_bits() > 0, corpus.d as f32);
    // Small stores scan all lists whatever is asked.
    let everything = codebook.default_nprobe() == codebook.nlist();
    let stops = if everything { &STOPS[STOPS.len() - 1..] } else { &STOPS[..] };
    // Every second will do where little is asked for.
    let some: Vec<f32> = stops.iter().copied().skip((stops.len() - 1) % 2).step_by(2).collect();
    let neighbors: Vec<usize> = NEIGHBORS.into_iter().filter(|&k| k <= most).collect();
    let again = coded || keys;
    let steps = neighbors.iter().map(|&k| 1 + if again { depths(k, coded).count() } else { 0 }).sum::<usize>();
    let mut done = 0;
    let mut step = || {
        progress(done as u64, steps as u64);
        done += 1;
    };
    let ids = lists.iter().map(|lists| lists.ids().end).max().unwrap_or(0);
    let mut out = Calibration { queries: own.len(), entries: live(codebook, lists), ids, ..Calibration::default() };
    for &k in &neighbors {
        let trials = Trials { corpus, truth, k, entries, nlist: codebook.nlist(), everything, pool, cancel };
        step();
        let first = if coded { &mut out.first } else { &mut out.rows };
        let found = trials.closely(Rerank::None, 1.0, if coded { &some } else { stops })?;
        first.extend(found.iter().map(|trial| trial.setting));
        let mut before = None;
        if !coded {
            out.keys.extend(found.iter().map(Trial::by_keys).filter(|_| keys));
            before = found.last().copied(); // of a row the last looks furthest
        }
        let rerank = if coded { Rerank::Code } else { Rerank::None };
        for (i, depth) in depths(k, coded).enumerate().filter(|_| again) {
            step();
            let stops = if k == 1 { &some } else { stops };
            let found =
                if i == 0 { trials.closely(rerank, depth, stops)? } else { trials.all(rerank, depth, stops)? };
            out.rows.extend(found.iter().map(|trial| trial.setting).filter(|_| coded));
            out.keys.extend(found.iter().map(Trial::by_keys).filter(|_| keys));
            let now = found.last().copied();
            if now.zip(before).is_some_and(|(now, before)| now.more_than(&before) < NEGLIGIBLE) {
                break; // nor will more candidates find more
            }
            before = now;
        }
        // As many as there are find everything, where all lists are scanned: that needs no trial.
        let all = entries.div_ceil(k) as f32;
        for depth in deeper(k).iter().copied().filter(|&depth| depth < all) {
            let best = out.keys.iter().filter(|row| row.k == k).map(|row| row.recall).fold(0.0, f32::max);
            if !keys || best >= SUFFICIENT || depth * k as f32 > MOST_CANDIDATES {
                break;
            }
            out.keys.extend(trials.all(Rerank::None, depth, &some)?.iter().map(Trial::by_keys));
        }
        let whole = Setting { k, stop: stops[0], depth: all, recall: 1.0, scanned: entries as f32 };
        out.keys.extend([whole].into_iter().filter(|_| keys && everything));
    }
    progress(steps as u64, steps as u64);
    out.rows = front(out.rows, CODE_NANOSECONDS);
    out.first = front(out.first, CODE_NANOSECONDS);
    out.keys = front(out.keys, 20.0 + 0.3 * d);
    Ok(out)
}

/// Entries in lists that are not deleted.
fn live(codebook: &Codebook, lists: &[Lists]) -> u64 {
    lists.iter().flat_map(|lists| (0..codebook.nlist()).map(|list| lists.live_len(list) as u64)).sum()
}

/// Stored keys at equal distances, none of them deleted, and the ids that each leaves out.
fn sample(corpus: &Corpus, protocol: &Protocol) -> (Vec<f32>, Vec<Range<u64>>) {
    let rows = Rows::new(&corpus.keys);
    let is_live = |&row: &usize| !contains(corpus.deleted, rows.id(row));
    let live = (!corpus.deleted.is_empty()).then(|| (0..rows.len()).filter(is_live).collect::<Vec<_>>());
    let n = live.as_ref().map_or(rows.len(), Vec::len);
    let wanted = protocol.queries.min(n);
    let mut queries = vec![0f32; wanted * corpus.d];
    let mut own = Vec::with_capacity(wanted);
    for (i, query) in queries.chunks_exact_mut(corpus.d).enumerate() {
        let at = ((2 * i + 1) as u128 * n as u128 / (2 * wanted) as u128) as usize;
        let row = live.as_ref().map_or(at, |live| live[at]);
        rows.read(row, query);
        own.push(protocol.own(rows.id(row)));
    }
    (queries, own)
}
