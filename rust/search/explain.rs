//! Why an entry is a neighbor of a query, and why not: the steps of a search again, for one query and one entry.
//!
//! Written to be clear, not fast: the ids of all lists are looked through for the entry, and the lists are scanned more than once.
//! What is told comes from the search itself, with its limits and its lists, so that both cannot disagree.

use super::answer::{planned, search};
use super::approximate::{Conditions, approximate};
use super::check::check;
use super::corpus::Corpus;
use super::near::Probe;
use super::places::{order, starts};
use super::plan::Plan;
use super::probes::Chooser;
use super::request::{HitsMut, Request, Rerank};
use super::rescore::Rescore;
use super::scan::{Queries, Scan};
use super::widen::widen;
use super::workspace::Workspace;
use crate::exact::{Filter, Nearest, Rows};
use crate::ids::contains;
use crate::index::{Codebook, Lists};
use crate::simd::{Kernels, LANES};
use crate::threads::Pool;
use crate::{Error, Metric, Result};
use std::sync::atomic::{AtomicBool, Ordering};

/// Ids that are looked through before somebody who wants to stop is heard.
const FIND_IDS: usize = 1 << 20;

/// What became of an entry in a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is among the k neighbors.
    Returned,
    /// No entry has the id.
    Unknown,
    /// It is deleted.
    Deleted,
    /// The query excludes its id.
    Excluded,
    /// The query allows others only.
    NotAllowed,
    /// The query denies its id.
    Denied,
    /// Its list is not among the nearest `nprobe`.
    ListNotProbed,
    /// Its list was passed over: further than the measured stop, by the limit that the nearest lists gave. Neighbors are rare
    /// there; recall below 1 means that there are some.
    ListOutOfReach,
    /// Its list is near enough, and was left out by the 4-bit estimate that chooses the lists whose distances are computed: only
    /// where keys have 97 dimensions or more and lists are many more than `nprobe`.
    ListLeftOutByEstimate,
    /// Its first-level score is beyond the limit: as many candidates as the search wanted are better.
    ScoreBeyondLimit,
    /// It was a candidate, and others are better by the second level or by raw keys.
    CutAtRescoring,
    /// k others are nearer, by scores that decide.
    BeyondK,
}

/// Why an entry is a neighbor of a query, or why not. Scores are those of the metric: squared distances (l2), inner products
/// (ip); estimates of a squared distance may be below 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// What became of it.
    pub reason: Reason,
    /// Its place among the neighbors, 0 = nearest, if it is one.
    pub rank: Option<usize>,
    /// The score that it was returned with.
    pub distance: Option<f32>,
    /// Score of the last neighbor; none if fewer than k were found.
    pub kth_distance: Option<f32>,
    /// Score by its raw key, where that is kept.
    pub exact_distance: Option<f32>,
    /// Whether its raw key was compared: the search was exact, or the entry is in no list.
    pub scanned_exactly: bool,
    /// What the search of the lists did; none if the entry is in no list.
    pub lists: Option<InLists>,
}

/// What the lists had to do with it.
#[derive(Clone, Debug, PartialEq)]
pub struct InLists {
    /// Number of lists.
    pub nlist: usize,
    /// Number of the entry's list.
    pub list: usize,
    /// Entries in it that are not deleted.
    pub list_entries: usize,
    /// Rank of its centroid, 0 = nearest.
    pub list_rank: usize,
    /// Score of its centroid.
    pub list_distance: f32,
    /// Whether the search scanned it.
    pub probed: bool,
    /// Lists that a query may scan.
    pub nprobe: usize,
    /// Lists that it scanned.
    pub lists_scanned: usize,
    /// Score beyond which a centroid is out of reach; none where only `nprobe` counts.
    pub reach: Option<f32>,
    /// Limit of first-level scores after the nearest lists; none if these held too few candidates.
    pub first_limit: Option<f32>,
    /// Limit of first-level scores at the end; none if there were too few candidates.
    pub last_limit: Option<f32>,
    /// First-level score.
    pub first_score: Option<f32>,
    /// Candidates that the search kept.
    pub candidates: usize,
    /// Whether it was among them.
    pub candidate: bool,
    /// Score with its second-level code, where there is one.
    pub second_score: Option<f32>,
    /// How candidates were scored again; never `Auto`.
    pub rerank: Rerank,
}

/// Where an entry lies in the lists: number of the segment, position in it, list.
struct At {
    segment: usize,
    position: u32,
    list: u32,
}

/// Why `id` is among the neighbors of one query, or why not.
///
/// # Errors
/// As [`search`]; `Argument` for more than one query.
pub fn explain(
    corpus: &Corpus,
    query: &[f32],
    request: &Request,
    id: u64,
    pool: &Pool,
    cancel: &AtomicBool,
) -> Result<Explanation> {
    let kernels = check(corpus, query, request)?;
    if query.len() != corpus.d {
        let found = query.len() / corpus.d;
        return Err(Error::Argument(format!("explain: expected one query, found {found}")));
    }
    let hits = search(corpus, query, request, pool, cancel)?;
    let rank = i64::try_from(id).ok().and_then(|id| hits.ids.iter().position(|&found| found == id));
    let rows = Rows::new(&corpus.keys);
    let exact_row = rows.find(id);
    let shown = |score: f32| if corpus.metric == Metric::Ip { -score } else { score };
    let waiting = corpus.unindexed.iter().any(|block| block.ids().contains(&id));
    let at = corpus.index.as_ref().map_or(Ok(None), |(_, lists)| find(lists, id, cancel))?;
    let filtered = filtered(&request.filter(corpus.deleted), id);
    let mut why = Explanation {
        reason: Reason::BeyondK,
        rank,
        distance: rank.map(|rank| hits.distances[rank]),
        kth_distance: hits.ids.last().filter(|&&id| id >= 0).and_then(|_| hits.distances.last().copied()),
        exact_distance: exact_row.map(|row| shown(rows.score(&kernels, corpus.metric, query, row))),
        scanned_exactly: waiting || (request.exact && exact_row.is_some()),
        lists: None,
    };
    let beyond = match (&corpus.index, &at) {
        (Some(index), Some(at)) if !request.exact => {
            let (reason, lists) = Steps { corpus, index, query, request, kernels, pool, cancel }.run(at, id, shown)?;
            why.lists = Some(lists);
            reason
        }
        _ => Reason::BeyondK,
    };
    let is_there = at.is_some() || waiting || why.exact_distance.is_some();
    why.reason = match (rank, filtered) {
        (Some(_), _) => Reason::Returned,
        (None, Some(Reason::Deleted)) => Reason::Deleted,
        (None, _) if !is_there => Reason::Unknown,
        (None, Some(filter)) => filter,
        (None, None) => beyond,
    };
    Ok(why)
}

/// Which part of a filter, that of one query, drops an entry.
fn filtered(filter: &Filter, id: u64) -> Option<Reason> {
    let of = |hit: bool, reason: Reason| hit.then_some(reason);
    of(contains(filter.deleted, id), Reason::Deleted)
        .or(of(filter.exclude.is_some_and(|all| all[0].contains(&id)), Reason::Excluded))
        .or(of(filter.allow.is_some_and(|all| !contains(&all[0], id)), Reason::NotAllowed))
        .or(of(filter.deny.is_some_and(|all| contains(&all[0], id)), Reason::Denied))
}

/// Looks through the ids of the lists, which may be on disk.
fn find(lists: &[Lists], id: u64, cancel: &AtomicBool) -> Result<Option<At>> {
    for (segment, lists) in lists.iter().enumerate().filter(|(_, lists)| lists.ids().contains(&id)) {
        let relative = id - lists.ids().start;
        for (part, ids) in lists.relative_ids().chunks(FIND_IDS).enumerate() {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            if let Some(own) = ids.iter().position(|&own| u64::from(own) == relative) {
                let position = part * FIND_IDS + own;
                return Ok(Some(At { segment, position: position as u32, list: lists.block_of(position).0 as u32 }));
            }
        }
    }
    Ok(None)
}

/// The steps of a search of the lists.
struct Steps<'e, 'a> {
    corpus: &'e Corpus<'a>,
    index: &'e (Codebook<'a>, Vec<Lists<'a>>),
    query: &'e [f32],
    request: &'e Request<'e>,
    kernels: Kernels,
    pool: &'e Pool,
    cancel: &'e AtomicBool,
}

impl Steps<'_, '_> {
    /// What became of an entry of the lists that is not returned, were it not for filters, and how.
    fn run(&self, at: &At, id: u64, shown: impl Fn(f32) -> f32) -> Result<(Reason, InLists)> {
        let (codebook, lists) = self.index;
        let (Plan { reach, candidates, rerank }, found) = self.lists_only()?;
        let starts = starts(lists)?;
        let entries = lists.iter().map(Lists::len).sum::<usize>();
        let scan = Scan {
            kernels: &self.kernels,
            codebook,
            lists,
            starts: &starts,
            queries: self.query,
            k: candidates.min(entries.max(1)),
            reach,
            filter: self.request.filter(self.corpus.deleted),
            part: 0,
            parts: 1,
            cold: false,
            cancel: self.cancel,
        };
        let mut w = Workspace::default();
        scan.run(&mut w)?;

        // All lists in the order of their scores.
        let near = scan.all_lists(0)?;
        let all = near.of(0);
        let mut ranked: Vec<usize> = (0..all.lists.len()).collect();
        ranked.sort_by(|&a, &b| all.scores[a].total_cmp(&all.scores[b]).then(a.cmp(&b)));
        let list_rank = ranked.iter().position(|&i| all.lists[i] == at.list).unwrap_or(ranked.len());
        let score = ranked.get(list_rank).map_or(f32::INFINITY, |&i| all.scores[i]);
        let base = all.shift + score;
        let [first, rest] = &w.rounds;
        let probed = first.iter().chain(rest).any(|probe| probe.list == at.list);

        // The nearest lists alone, for the limit that they give.
        let queries = Queries { tables: &w.tables, bytes: &w.bytes };
        let limit = |nearest: &Nearest| Some(nearest.limit()).filter(|_| nearest.len() >= scan.k);
        let mut of_nearest = [Nearest::new(scan.k, f32::MAX)];
        scan.sweep(first, queries, &mut of_nearest)?;
        of_nearest[0].cut(&self.kernels, |p| order(lists, &starts, p));
        let first_limit = limit(&of_nearest[0]);
        let chooser = Chooser { kernels: &self.kernels, codebook, lists, k: scan.k, reach };
        let nearest = first.iter().map(|probe| probe.base).fold(f32::INFINITY, f32::min);
        let furthest = |shift: f32| Some(chooser.reach_of(reach.stop?, first_limit?, shift, nearest));
        let within = score <= furthest(all.shift).unwrap_or(f32::MAX);

        // The entry's list once more, with room for all of it.
        let (segment, start) = (&lists[at.segment], starts[at.segment]);
        let whole = Scan { filter: Filter::default(), ..scan };
        let probe = Probe { list: at.list, query: 0, base };
        let mut scores = [Nearest::default()];
        scores[0].reset(segment.list_len(at.list as usize) + LANES, f32::MAX);
        whole.scan_list(segment, start, probe, queries, &mut scores);
        let place = start + at.position;
        let own = scores[0].entries().iter().position(|&entry| entry == place);
        let first_score = own.map(|i| scores[0].scores()[i]);
        let second_score = first_score.filter(|_| segment.has_second()).map(|score| {
            let rescore = Rescore { kernels: &self.kernels, lists, starts: &starts, cold: false };
            let mut score = [score];
            rescore.query(&w.bytes.query(0), &mut score, &[place]).map(|()| score[0])
        });
        let candidate = w.nearest[0].entries().contains(&place);
        let reason = match () {
            _ if !probed && list_rank >= reach.nprobe => Reason::ListNotProbed,
            _ if !probed && !within => Reason::ListOutOfReach,
            _ if !probed => Reason::ListLeftOutByEstimate,
            _ if !candidate => Reason::ScoreBeyondLimit,
            _ if !i64::try_from(id).is_ok_and(|id| found.contains(&id)) => Reason::CutAtRescoring,
            _ => Reason::BeyondK,
        };
        let told = InLists {
            nlist: codebook.nlist(),
            list: at.list as usize,
            list_entries: chooser.list_len(at.list) as usize,
            list_rank,
            list_distance: shown(base),
            probed,
            nprobe: reach.nprobe,
            lists_scanned: first.len() + rest.len(),
            reach: furthest(0.0).map(&shown),
            first_limit: first_limit.map(&shown),
            last_limit: limit(&w.nearest[0]).map(&shown),
            first_score: first_score.map(&shown),
            candidates: w.nearest[0].len(),
            candidate,
            second_score: second_score.transpose()?.map(&shown),
            rerank,
        };
        Ok((reason, told))
    }

    /// How the lists were searched in the end, and what they gave.
    fn lists_only(&self) -> Result<(Plan, Vec<i64>)> {
        let Steps { corpus, query, request, kernels, pool, cancel, .. } = self;
        let plan = planned(corpus, request)?;
        let (mut distances, mut ids) = (vec![0.0; request.k], vec![0; request.k]);
        let mut out = HitsMut { distances: &mut distances, ids: &mut ids };
        approximate(corpus, query, request, &plan, kernels, pool, cancel, &mut out, Conditions::now())?;
        let plan = widen(corpus, query, request, &plan, kernels, pool, cancel, &mut out)?;
        Ok((plan, ids))
    }
}
