//! What a search asks the disk for: all that it will read, in order, and nothing while all is in memory.

use super::ahead::Ahead;
use super::answer::planned;
use super::approximate::{Conditions, approximate};
use super::near::{Probe, runs};
use super::tests::{ask, build, clustered, corpus, pool};
use super::*;
use crate::index::{Codebook, Lists, Memory, Params, write_lists};
use crate::keys::{KeyBlock, KeyRows};
use crate::sections::{Advise, SectionKind, SectionSource, coalesce};
use crate::simd::Kernels;
use crate::{Error, Metric, Result};
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

/// Sections in memory, and what was asked for of them.
struct Watched<'m> {
    sections: &'m Memory,
    asked: &'m Mutex<Vec<Range<usize>>>,
}

impl SectionSource for Watched<'_> {
    fn section(&self, kind: SectionKind) -> Result<&[u8]> {
        self.sections.section(kind)
    }

    fn advise(&self, part: &[u8]) {
        let span = part.as_ptr_range();
        self.asked.lock().expect("no panic").push(span.start.addr()..span.end.addr());
    }

    fn format_error(&self, message: String) -> Error {
        self.sections.format_error(message)
    }
}

#[test]
fn a_cold_search_asks_the_disk_for_all_that_it_reads_and_a_warm_one_for_nothing() {
    let (n, d, k, q) = (4000, 160, 200, 20);
    let keys = clustered(n, d, 40, 1.0, 12);
    let block = |first_id, rows: Range<usize>| KeyBlock {
        first_id,
        d,
        rows: KeyRows::F32(&keys[rows.start * d..rows.end * d]),
    };
    let mut built = build(&[block(0, 0..n)], Metric::L2, &Params { nlist: Some(64), ..Params::default() }, 2);
    let book = Codebook::open(&built.codebook, d, Metric::L2).expect("opens");
    built.lists = [0..n / 2, n / 2..n]
        .map(|rows| {
            let (first, never, mut sink) = (rows.start as u64, AtomicBool::new(false), Memory::default());
            let n = rows.len() as u64;
            write_lists(&book, &[block(first, rows)], &pool(2), &|_, _, _| (), &never, &mut sink).expect("writes");
            (sink, first, n)
        })
        .into();
    let asked = Mutex::default();
    let watched: Vec<_> = built.lists.iter().map(|(sections, ..)| Watched { sections, asked: &asked }).collect();
    let open =
        || watched.iter().zip(&built.lists).map(|(w, &(_, first, n))| Lists::open(w, &book, first, n).expect("opens"));
    let corpus = Corpus {
        d,
        metric: Metric::L2,
        keys: vec![],
        index: Some((Codebook::open(&built.codebook, d, Metric::L2).expect("opens"), open().collect())),
        unindexed: vec![],
        deleted: &[],
        measured: None,
        advise: None,
    };
    let request = Request { nprobe: Some(2), rerank: Rerank::Code, ..ask(k) };
    for queries in [&keys[..d], &keys[..q * d]] {
        let [(cold, spans), (warm, none)] = [true, false].map(|cold| {
            let conditions = Conditions { cold, ..Conditions::now() };
            let rows = queries.len() / d * k;
            let (mut distances, mut ids) = (vec![0.0; rows], vec![0; rows]);
            let mut out = HitsMut { distances: &mut distances, ids: &mut ids };
            let (never, plan) = (AtomicBool::new(false), planned(&corpus, &request).expect("plans"));
            approximate(&corpus, queries, &request, &plan, &Kernels::best(), &pool(1), &never, &mut out, conditions)
                .expect("searches");
            ((distances, ids), std::mem::take(&mut *asked.lock().expect("no panic")))
        });
        assert_eq!(cold, warm);
        assert!(none.is_empty(), "{none:?}");
        let holds = |part: &[u8]| {
            let part = part.as_ptr_range();
            spans.iter().any(|span| span.start <= part.start.addr() && part.end.addr() <= span.end)
        };
        let mut seen = 0;
        for (lists, watched) in open().zip(&watched) {
            let ids = watched.section(SectionKind::ListIds).expect("ids");
            for position in 0..lists.len() {
                if cold.1.contains(&(lists.id(position as u32).expect("an id") as i64)) {
                    assert!(holds(lists.block_of(position).1), "codes of {position}");
                    assert!(holds(lists.record(position as u32)), "record of {position}");
                    assert!(holds(&ids[4 * position..4 * position + 4]), "id of {position}");
                    seen += 1;
                }
            }
        }
        assert!(seen >= k.min(50), "{seen} neighbors");
        let bytes: usize = built.lists.iter().map(|(sections, ..)| sections.bytes()).sum();
        let all: usize = spans.iter().map(|span| span.len()).sum();
        assert!(queries.len() > d || all < bytes / 2, "one query asks for {all} of {bytes} bytes");
    }
}

#[test]
fn lists_are_asked_for_once_in_order_and_no_farther_than_the_window() {
    let (n, d, nlist, window) = (4000, 24, 64, 5000);
    let keys = clustered(n, d, 40, 1.0, 13);
    let block = KeyBlock { first_id: 0, d, rows: KeyRows::F32(&keys) };
    let built = build(&[block], Metric::L2, &Params { nlist: Some(nlist), ..Params::default() }, 2);
    let asked = Mutex::default();
    let watched = Watched { sections: &built.lists[0].0, asked: &asked };
    let book = Codebook::open(&built.codebook, d, Metric::L2).expect("opens");
    let lists = [Lists::open(&watched, &book, 0, n as u64).expect("opens")];
    let probes: Vec<Probe> =
        (0..nlist as u32).flat_map(|list| [0, 1].map(|query| Probe { list, query, base: 0.0 })).collect();
    let mut ahead = Ahead::new(&lists, &probes, true);
    ahead.window = window;
    let first = lists[0].list(0).0.as_ptr().addr();
    let longest = (0..nlist).map(|list| lists[0].list(list).0.len()).max().expect("lists");
    let mut scanned = 0;
    for run in runs(&probes) {
        ahead.reach(run);
        let codes = watched.section(SectionKind::Codes).expect("codes").as_ptr_range();
        let in_codes = |span: &&Range<usize>| codes.start.addr() <= span.start && span.end <= codes.end.addr();
        let mut end = first;
        for span in asked.lock().expect("no panic").iter().filter(in_codes).filter(|span| !span.is_empty()) {
            assert_eq!(span.start, end, "in order, nothing twice");
            end = span.end;
        }
        let before = scanned;
        scanned += lists[0].list(run[0].list as usize).0.len();
        assert!(end >= first + scanned, "list {} was not asked for", run[0].list);
        assert!(end <= first + before + window + longest, "{} bytes ahead", end - first - before);
    }
    assert_eq!(scanned, watched.section(SectionKind::Codes).expect("codes").len());
}

/// Memory in place of a disk, and what was asked of it.
#[derive(Default)]
struct Asked(Mutex<Vec<Range<usize>>>);

impl Advise for Asked {
    fn advise(&self, part: &[u8]) {
        let span = part.as_ptr_range();
        self.0.lock().expect("no panic").push(span.start.addr()..span.end.addr());
    }
}

#[test]
fn a_cold_search_asks_for_the_raw_keys_that_it_scores_and_a_warm_one_for_none() {
    let (n, d, k, q) = (3000, 160, 30, 5);
    let keys = clustered(n, d, 40, 1.0, 14);
    let block = |rows: Range<usize>| KeyBlock {
        first_id: rows.start as u64,
        d,
        rows: KeyRows::F32(&keys[rows.start * d..rows.end * d]),
    };
    let built = build(&[block(0..n)], Metric::L2, &Params { nlist: Some(32), ..Params::default() }, 2);
    let disk = Asked::default();
    let blocks = [block(0..n / 3), block(n / 3..n)];
    let corpus = Corpus { advise: Some(&disk), ..corpus(&built, &blocks, Metric::L2) };
    let request = Request { nprobe: Some(2), rerank: Rerank::Keys, depth: Some(2 * k), ..ask(k) };
    let [(cold, spans), (warm, none)] = [true, false].map(|cold| {
        let conditions = Conditions { cold, ..Conditions::now() };
        let (mut distances, mut ids) = (vec![0.0; q * k], vec![0; q * k]);
        let mut out = HitsMut { distances: &mut distances, ids: &mut ids };
        let (never, plan) = (AtomicBool::new(false), planned(&corpus, &request).expect("plans"));
        approximate(&corpus, &keys[..q * d], &request, &plan, &Kernels::best(), &pool(1), &never, &mut out, conditions)
            .expect("searches");
        ((distances, ids), std::mem::take(&mut *disk.0.lock().expect("no panic")))
    });
    assert_eq!(cold, warm);
    assert!(none.is_empty(), "{none:?}");
    for &id in &cold.1 {
        let row = keys[id as usize * d..(id as usize + 1) * d].as_ptr_range();
        assert!(spans.iter().any(|s| s.start <= row.start.addr() && row.end.addr() <= s.end), "key of {id}");
    }
    assert!(spans.len() < q * 2 * k, "near rows are asked for together: {} spans", spans.len());
    let all: usize = spans.iter().map(Range::len).sum();
    assert!(all <= q * size_of_val(&keys[..]), "no more than all keys for each query");
}

#[test]
fn rows_are_covered_by_spans_in_order_and_only_near_ones_together() {
    let mut spans = Vec::new();
    let far = 1 << 20;
    coalesce([0, 40, 60_000, far, far + 10, 5 * far].into_iter(), 10, |span| spans.push(span));
    assert_eq!(spans, [0..60_010, far..far + 20, 5 * far..5 * far + 10]);
    coalesce(std::iter::empty(), 10, |span| panic!("asked for {span:?}"));
}
