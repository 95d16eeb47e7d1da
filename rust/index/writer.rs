//! Assigns every key to its list, encodes it and streams the list sections.

use super::Progress;
use super::block;
use super::codebook::Codebook;
use super::kmeans::members;
use super::quantiser::Encoder;
use super::trainer::check_keys;
use crate::keys::KeyBlock;
use crate::search::Pool;
use crate::search::rows::Rows;
use crate::search::sweep::{Closest, Panels, sweep};
use crate::sections::{SectionKind, SectionSink};
use crate::simd::{Kernels, LANES};
use crate::{Error, Metric, Result};
use std::sync::atomic::{AtomicBool, Ordering};

/// Keys that a thread assigns at a time.
const CHUNK: usize = 1024;
/// Bytes of codes that are in memory at a time.
const CODE_BYTES: usize = 64 << 20;

/// See [`super::write_lists`].
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

    sink.begin(SectionKind::Codes)?;
    let most = (CODE_BYTES / codebook.block_bytes()).max(1) * LANES;
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
            let parts = pool.map(tasks.len(), |t| {
                if cancel.load(Ordering::Relaxed) {
                    return Err(Error::Interrupted);
                }
                let (l, start) = tasks[t];
                Ok(encode(&kernels, codebook, &rows, l, &members[start..starts[l + 1].min(start + 64 * LANES)]))
            });
            parts.into_iter().try_for_each(|part| sink.write(&part?))?;
            let done = tasks.last().map_or(0, |&(l, start)| starts[l + 1].min(start + 64 * LANES));
            progress("encode", done as u64, n as u64);
        }
    }
    sink.end()
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
    // Lists are made by distance for both metrics; the coarse offsets of inner products lack |c|².
    let norms: Vec<f32> = match codebook.metric() {
        Metric::L2 => codebook.norms.to_vec(),
        Metric::Ip => {
            let mut norms = vec![f32::INFINITY; codebook.norms.len()];
            (0..codebook.nlist()).for_each(|l| norms[l] = kernels.ip_f32(codebook.centroid(l), codebook.centroid(l)));
            norms
        }
    };
    let panels = Panels { d, data: codebook.panels, offsets: &norms, scale: -2.0 };
    let mut labels = Vec::with_capacity(n);
    let round = CHUNK * 16 * pool.threads();
    for start in (0..n).step_by(round) {
        let end = n.min(start + round);
        let parts = pool.map((end - start).div_ceil(CHUNK), |c| {
            let (start, end) = (start + c * CHUNK, end.min(start + (c + 1) * CHUNK));
            let mut closest = Closest::new(end - start);
            if !cancel.load(Ordering::Relaxed) {
                let mut data = vec![0f32; (end - start) * d];
                for (i, row) in (start..end).zip(data.chunks_exact_mut(d)) {
                    rows.read(i, row);
                    row.iter_mut().zip(codebook.mean).for_each(|(x, m)| *x -= m);
                }
                sweep(kernels, &data, &panels, &mut closest);
            }
            closest.labels
        });
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        parts.into_iter().for_each(|part| labels.extend(part));
        progress("assign", end as u64, n as u64);
    }
    Ok(labels)
}

/// Blocks of the entries `members` of `list`.
fn encode(kernels: &Kernels, codebook: &Codebook, rows: &Rows, list: usize, members: &[u32]) -> Vec<u8> {
    let (d, shape, block_bytes) = (codebook.d(), codebook.shape(), codebook.block_bytes());
    let encoder = Encoder { kernels: *kernels, shape, words: codebook.words, metric: codebook.metric() };
    let mut centroid = vec![0f32; shape.padded()];
    let pairs = codebook.centroid(list).iter().zip(codebook.mean);
    centroid.iter_mut().zip(pairs).for_each(|(x, (c, m))| *x = c - m);
    codebook.rotation.apply(kernels, &mut centroid[..d]);
    let (mut residual, mut word) = (vec![0f32; shape.padded()], vec![0f32; shape.padded()]);
    let mut codes = vec![0u8; shape.m];
    let mut out = vec![0u8; members.len().div_ceil(LANES) * block_bytes];
    for (members, block) in members.chunks(LANES).zip(out.chunks_exact_mut(block_bytes)) {
        for (lane, &row) in members.iter().enumerate() {
            rows.read(row as usize, &mut residual[..d]);
            residual[d..].fill(0.0);
            residual.iter_mut().zip(codebook.centroid(list)).for_each(|(x, c)| *x -= c);
            codebook.rotation.apply(kernels, &mut residual[..d]);
            let factors = encoder.encode(&mut residual, &centroid, &mut codes, &mut word);
            block::put(shape, block, lane, &codes, factors);
        }
        (members.len()..LANES).for_each(|lane| block::put_padding(shape, block, lane));
    }
    out
}
