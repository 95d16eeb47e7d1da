//! Raw keys of several blocks, counted through: reading, finding and scoring rows.

use super::found::Found;
use crate::Metric;
use crate::keys::{KeyBlock, KeyRows};
use crate::sections::{Advise, coalesce};
use crate::simd::{Kernels, prefetch};

/// Rows that are prefetched ahead of their turn.
const AHEAD: usize = 8;

/// A range of rows of several key blocks, counted through.
pub struct Rows<'k> {
    blocks: Vec<KeyBlock<'k>>,
    /// First row of each block, and the end.
    starts: Vec<usize>,
}

impl<'k> Rows<'k> {
    /// Rows of `blocks` in order.
    pub fn new(blocks: &[KeyBlock<'k>]) -> Rows<'k> {
        let mut starts = vec![0];
        starts.extend(blocks.iter().scan(0, |sum, b| {
            *sum += b.n();
            Some(*sum)
        }));
        Rows { blocks: blocks.to_vec(), starts }
    }

    /// At most about `most` rows, evenly spread in runs of 256; all, if there are no more.
    pub fn part(&self, most: usize) -> Rows<'k> {
        const RUN: usize = 256;
        let every = self.len().div_ceil(most.max(1));
        if every <= 1 {
            return Rows::new(&self.blocks);
        }
        let runs = self.blocks.iter().flat_map(|block| {
            (0..block.n()).step_by(RUN * every).map(|start| block.slice(start..block.n().min(start + RUN)))
        });
        Rows::new(&runs.collect::<Vec<_>>())
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.starts[self.blocks.len()]
    }

    fn locate(&self, row: usize) -> (&KeyBlock<'k>, usize) {
        let b = self.starts.partition_point(|&s| s <= row) - 1;
        (&self.blocks[b], row - self.starts[b])
    }

    /// Id of a row.
    pub fn id(&self, row: usize) -> u64 {
        let (block, i) = self.locate(row);
        block.first_id + i as u64
    }

    /// Copies a row as f32.
    pub fn read(&self, row: usize, out: &mut [f32]) {
        let (block, i) = self.locate(row);
        block.read_row(i, out);
    }

    /// Row of an id, if it is there.
    pub fn find(&self, id: u64) -> Option<usize> {
        let b = self.blocks.partition_point(|b| b.first_id <= id).checked_sub(1)?;
        let i = usize::try_from(id - self.blocks[b].first_id).ok()?;
        (i < self.blocks[b].n()).then(|| self.starts[b] + i)
    }

    /// Writes the direct scores of `rows` to `found`, prefetching rows ahead of their turn.
    pub fn score_all(
        &self,
        kernels: &Kernels,
        metric: Metric,
        query: &[f32],
        rows: impl Iterator<Item = usize> + Clone,
        found: &mut Found,
    ) {
        let mut ahead = rows.clone();
        ahead.by_ref().take(AHEAD).for_each(|row| self.prefetch(row));
        for (row, found) in rows.zip(found) {
            ahead.next().into_iter().for_each(|row| self.prefetch(row));
            found.0 = self.score(kernels, metric, query, row);
        }
    }

    /// Asks the disk for rows, ascending; near ones are read together.
    pub fn advise(&self, disk: &dyn Advise, rows: &[usize]) {
        let block_of = |row: usize| self.starts.partition_point(|&start| start <= row);
        for rows in rows.chunk_by(|&a, &b| block_of(a) == block_of(b)) {
            let (block, first) = self.locate(rows[0]);
            let (bytes, start) = (block.rows.as_bytes(), rows[0] - first);
            let stride = bytes.len() / block.n();
            let advise = |span| disk.advise(&bytes[span]);
            coalesce(rows.iter().map(|row| (row - start) * stride), stride, advise);
        }
    }

    /// Prefetches a row that will be scored soon.
    pub fn prefetch(&self, row: usize) {
        let (block, i) = self.locate(row);
        let span = i * block.d..(i + 1) * block.d;
        match block.rows {
            KeyRows::F32(x) => prefetch(&x[span]),
            KeyRows::F16(x) => prefetch(&x[span]),
        }
    }

    /// Direct score of a row: squared L2, or the negated inner product.
    pub fn score(&self, kernels: &Kernels, metric: Metric, query: &[f32], row: usize) -> f32 {
        let (block, i) = self.locate(row);
        let span = i * block.d..(i + 1) * block.d;
        match (metric, block.rows) {
            (Metric::L2, KeyRows::F32(x)) => kernels.l2_f32(query, &x[span]),
            (Metric::L2, KeyRows::F16(x)) => kernels.l2_f16(query, &x[span]),
            (Metric::Ip, KeyRows::F32(x)) => -kernels.ip_f32(query, &x[span]),
            (Metric::Ip, KeyRows::F16(x)) => -kernels.ip_f16(query, &x[span]),
        }
    }
}
