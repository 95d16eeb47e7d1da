//! Assigns every key to its list, encodes it and streams the list sections.

use super::block;
use super::codebook::Codebook;
use super::coding::Encoder;
use super::kmeans::{Matrix, members, pack};
use super::second;
use super::trainer::check_keys;
use crate::exact::Rows;
use crate::keys::KeyBlock;
use crate::sections::{SectionKind, SectionSink};
use crate::simd::{Kernels, LANES};
use crate::threads::Pool;
use crate::work::Progress;
use crate::{Error, Metric, Result};
use std::sync::atomic::{AtomicBool, Ordering};

/// Keys that a thread assigns at a time.
const CHUNK: usize = 1024;
/// Bytes of codes that are in memory at a time.
const CODE_BYTES: usize = 64 << 20;

/// Assigns and encodes `keys` (ascending disjoint id ranges) and writes the list sections (ListOffsets, ListIds,
/// Codes). Ids are stored relative to `keys[0].first_id`. Memory: 4 bytes per key and a bounded buffer.
///
/// # Errors
/// `Argument` for no keys, a wrong dimension or ids that span more than 2³² ; `Interrupted` once `cancel` is set;
/// whatever `sink` returns.
pub fn write_lists(
    codebook: &Codebook,
    keys: &[KeyBlock],
    pool: &Pool,
    progress: Progress,
    cancel: &AtomicBool,
    sink: &mut dyn SectionSink,
) -> Result<()> {
    let (d, n) = check_keys(keys)?;
    if d != codebook.d() {
        return Err(Error::Argument(format!("keys: expected dimension {}, found {d}", codebook.d())));
    }
    let first_id = keys[0].first_id;
    let span = keys[keys.len() - 1].ids().end - first_id;
    if span > u64::from(u32::MAX) {
        return Err(Error::Argument(format!(
            "one segment holds ids over a span below 2³², found {span}; build in parts"
        )));
    }
    let kernels = Kernels::best();
    let rows = Rows::new(keys);
    let labels = assign(&kernels, codebook, &rows, pool, progress, cancel)?;
    let nlist = codebook.nlist();
    let (starts, members) = members(&labels, nlist);
    drop(labels);

    sink.begin(SectionKind::ListOffsets)?;
    let offsets: Vec<u64> = starts.iter().map(|&s| s as u64).collect();
    sink.write(bytemuck::cast_slice(&offsets))?;
    sink.end()?;
    sink.begin(SectionKind::ListIds)?;
    for part in members.chunks(1 << 20) {
        let ids: Vec<u32> = part.iter().map(|&row| (rows.id(row as usize) - first_id) as u32).collect();
        sink.write(bytemuck::cast_slice(&ids))?;
    }
    sink.end()?;

    let work = Work { kernels: &kernels, codebook, rows: &rows, starts: &starts, members: &members, pool, cancel };
    sink.begin(SectionKind::Codes)?;
    work.stream(codebook.block_bytes(), sink, &|done| progress("encode", done, n as u64), &encode)?;
    sink.end()?;
    if let Some(bytes) = codebook.second_bytes() {
        sink.begin(SectionKind::SecondCodes)?;
        work.stream(bytes * LANES, sink, &|done| progress("second codes", done, n as u64), &encode_second)?;
        sink.end()?;
    }
    Ok(())
}

/// Entries in list order and what encodes them.
struct Work<'w, 'a> {
    kernels: &'w Kernels,
    codebook: &'w Codebook<'a>,
    rows: &'w Rows<'w>,
    starts: &'w [usize],
    members: &'w [u32],
    pool: &'w Pool,
    cancel: &'w AtomicBool,
}

/// Bytes of some entries (`&[u32]`) of a list.
type Encode<'e> = dyn Fn(&Work, usize, &[u32]) -> Vec<u8> + Sync + 'e;

impl Work<'_, '_> {
    /// Writes what `encode` makes of the lists; `bytes` for each 16 entries are expected.
    fn stream(&self, bytes: usize, sink: &mut dyn SectionSink, done: &dyn Fn(u64), encode: &Encode) -> Result<()> {
        let starts = self.starts;
        let (nlist, most) = (starts.len() - 1, (CODE_BYTES / bytes).max(1) * LANES);
        let mut list = 0;
        while list < nlist {
            let first = list;
            list += 1;
            while list < nlist && starts[list + 1] - starts[first] <= most {
                list += 1;
            }
            // A part of at most 64 blocks of a list is a task: no list is so long that it holds up the others.
            let tasks: Vec<(usize, usize)> = (first..list)
                .flat_map(|l| (starts[l]..starts[l + 1]).step_by(64 * LANES).map(move |start| (l, start)))
                .collect();
            for tasks in tasks.chunks(256) {
                let parts = self.pool.map(tasks.len(), |t| {
                    if self.cancel.load(Ordering::Relaxed) {
                        return Err(Error::Interrupted);
                    }
                    let (l, start) = tasks[t];
                    Ok(encode(self, l, &self.members[start..starts[l + 1].min(start + 64 * LANES)]))
                });
                parts.into_iter().try_for_each(|part| sink.write(&part?))?;
                done(tasks.last().map_or(0, |&(l, start)| starts[l + 1].min(start + 64 * LANES)) as u64);
            }
        }
        Ok(())
    }
}

/// Nearest list of every key.
fn assign(
    kernels: &Kernels,
    codebook: &Codebook,
    rows: &Rows,
    pool: &Pool,
    progress: Progress,
    cancel: &AtomicBool,
) -> Result<Vec<u32>> {
    let (d, n) = (codebook.d(), rows.len());
    // Lists are made by distance for both metrics.
    let mut centroids = Matrix { d, data: Vec::with_capacity(codebook.nlist() * d) };
    for list in 0..codebook.nlist() {
        let mut row: Vec<f32> = codebook.centroid(list).iter().zip(codebook.mean).map(|(c, m)| c - m).collect();
        codebook.rotation.apply(kernels, &mut row);
        centroids.data.extend(row);
    }
    let packed = pack(kernels, &centroids);
    drop(centroids);
    let mut labels = Vec::with_capacity(n);
    let round = CHUNK * 16 * pool.threads();
    for start in (0..n).step_by(round) {
        let end = n.min(start + round);
        let parts = pool.map((end - start).div_ceil(CHUNK), |c| {
            let (start, end) = (start + c * CHUNK, end.min(start + (c + 1) * CHUNK));
            if cancel.load(Ordering::Relaxed) {
                return Vec::new();
            }
            let mut data = vec![0f32; (end - start) * d];
            for (i, row) in (start..end).zip(data.chunks_exact_mut(d)) {
                rows.read(i, row);
                row.iter_mut().zip(codebook.mean).for_each(|(x, m)| *x -= m);
                codebook.rotation.apply(kernels, row);
            }
            packed.nearest(kernels, &data, d).0
        });
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        parts.into_iter().for_each(|part| labels.extend(part));
        progress("assign", end as u64, n as u64);
    }
    Ok(labels)
}

/// An entry's rotated residual, its first-level code and what the code stands for.
struct Coder<'c, 'a> {
    work: &'c Work<'c, 'a>,
    encoder: Encoder<'c>,
    list: usize,
    /// Rotated centroid less the mean, padded.
    centroid: Vec<f32>,
    /// Rotated residual, of length one after [`Self::first`].
    residual: Vec<f32>,
    codes: Vec<u8>,
    word: Vec<f32>,
}

impl<'c, 'a> Coder<'c, 'a> {
    fn new(work: &'c Work<'c, 'a>, list: usize) -> Coder<'c, 'a> {
        let (codebook, coding) = (work.codebook, work.codebook.coding());
        let (d, metric) = (codebook.d(), codebook.metric());
        let encoder = Encoder { kernels: *work.kernels, coding, words: codebook.words, d, metric };
        let mut centroid = vec![0f32; coding.padded()];
        let pairs = codebook.centroid(list).iter().zip(codebook.mean);
        centroid.iter_mut().zip(pairs).for_each(|(x, (c, m))| *x = c - m);
        codebook.rotation.apply(work.kernels, &mut centroid[..codebook.d()]);
        let scratch = vec![0f32; coding.padded()];
        let codes = vec![0u8; coding.codes()];
        Coder { work, encoder, list, centroid, residual: scratch.clone(), codes, word: scratch }
    }

    /// Reads and rotates the residual of a row.
    fn read(&mut self, row: u32) {
        let (codebook, d) = (self.work.codebook, self.work.codebook.d());
        self.work.rows.read(row as usize, &mut self.residual[..d]);
        self.residual[d..].fill(0.0);
        self.residual.iter_mut().zip(codebook.centroid(self.list)).for_each(|(x, c)| *x -= c);
        codebook.rotation.apply(self.work.kernels, &mut self.residual[..d]);
    }

    /// Codes the residual that was read; gives the factors.
    fn first(&mut self) -> (f32, f32) {
        self.encoder.encode(&mut self.residual, &self.centroid, &mut self.codes, &mut self.word)
    }
}

/// Blocks of the entries `members` of `list`.
fn encode(work: &Work, list: usize, members: &[u32]) -> Vec<u8> {
    let (coding, block_bytes) = (work.codebook.coding(), work.codebook.block_bytes());
    let mut coder = Coder::new(work, list);
    let mut out = vec![0u8; members.len().div_ceil(LANES) * block_bytes];
    for (members, block) in members.chunks(LANES).zip(out.chunks_exact_mut(block_bytes)) {
        for (lane, &row) in members.iter().enumerate() {
            coder.read(row);
            let factors = coder.first();
            block::put(coding, block, lane, &coder.codes, factors);
        }
        (members.len()..LANES).for_each(|lane| block::put_padding(coding, block, lane));
    }
    out
}

/// Second-level records of the entries `members` of `list`.
fn encode_second(work: &Work, list: usize, members: &[u32]) -> Vec<u8> {
    let (d, metric) = (work.codebook.d(), work.codebook.metric());
    let record_bytes = second::record_bytes(d);
    let mut coder = Coder::new(work, list);
    let mut out = vec![0u8; members.len() * record_bytes];
    let (mut residual, mut left) = (vec![0f32; d], vec![0f32; d]);
    for (&row, record) in members.iter().zip(out.chunks_exact_mut(record_bytes)) {
        coder.read(row);
        residual.copy_from_slice(&coder.residual[..d]);
        let (_, b) = coder.first();
        let s = if metric == Metric::L2 { -b / 2.0 } else { -b };
        left.iter_mut().zip(&residual).zip(&coder.word).for_each(|((e, r), u)| *e = r - s * u);
        second::encode(work.kernels, metric, &mut left, &residual, &coder.centroid[..d], record);
    }
    out
}
