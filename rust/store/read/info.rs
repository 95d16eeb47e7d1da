//! What a store says about itself.

use super::snapshot::Snapshot;
use crate::search::{Calibration, Setting, most};
use crate::store::format::files::Folder;
use crate::store::format::fit::Fit;
use crate::store::format::layout::{FORMAT_MAJOR, FORMAT_MINOR};
use crate::store::format::manifest::Manifest;
use crate::store::format::records::{KeyType, ValueType};
use crate::store::format::segment::SegmentFile;
use crate::{Metric, Result};
use serde::Serialize;
use serde_json::value::RawValue;

/// Sizes, parameters and statistics of a store.
#[derive(Clone, Debug, Serialize)]
pub struct Info {
    /// Where it lies.
    pub path: String,
    /// Number of its manifest.
    pub generation: u64,
    /// Format version, "major.minor".
    pub format: String,
    /// Number of entries.
    pub entries: u64,
    /// The next id; every id so far is below it.
    pub next_id: u64,
    /// Dimension of a key.
    pub dim: usize,
    /// How keys are compared.
    pub metric: Metric,
    /// How values are stored.
    pub value_dtype: ValueType,
    /// Largest value that may be added.
    pub max_value: Option<u64>,
    /// Whether `build` keeps raw keys, and how.
    pub keep_keys: Option<KeyType>,
    /// Entries, deleted ones not counted, whose raw keys are there.
    pub entries_with_keys: u64,
    /// Entries that are in a list; the rest is scanned exactly.
    pub indexed: u64,
    /// Deleted documents whose bytes are still on disk, until `compact`.
    pub deleted_documents: u64,
    /// Their entries.
    pub deleted_entries: u64,
    /// Number of documents.
    pub documents: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// The same divided by the number of entries.
    pub bytes_per_entry: f64,
    /// Bytes per entry that a search by codes can touch: everything but values, documents and raw keys of indexed
    /// entries.
    pub search_bytes_per_entry: f64,
    /// The index, if it was built.
    pub index: Option<IndexInfo>,
    /// Every file.
    pub files: Vec<FileInfo>,
    /// What the caller had remembered.
    pub attributes: Box<RawValue>,
}

/// Parameters of an index.
#[derive(Clone, Debug, Serialize)]
pub struct IndexInfo {
    /// Number of lists.
    pub nlist: usize,
    /// Parts of a key that have a code each: sub-quantisers, or coordinates.
    pub m: usize,
    /// Bits of each.
    pub bits: u8,
    /// Bits a coordinate of the second-level code; 0 where there is none.
    pub second_bits: u8,
    /// Bytes of a code.
    pub code_bytes: usize,
    /// Lists that a search scans when not told otherwise.
    pub default_nprobe: usize,
    /// Softmax temperature from the store's own distances.
    pub default_temperature: f32,
    /// Seed of the build.
    pub seed: u64,
    /// How well codes fit what the codebook was learnt from and what was added since.
    pub fit: Option<Fit>,
    /// For each k, the best recall that was measured, and the number of queries; none where it was not.
    pub calibration: Vec<CalibrationInfo>,
    /// By how much the mean quantisation error of what was added is larger, as a fraction; none where nothing was added, or
    /// the error was none before.
    pub drift: Option<f64>,
    /// Whether the store has outgrown its index, by that error or by its size, so that a new one is worth its time.
    pub retrain_advised: bool,
    /// Why.
    pub retrain_reason: Option<String>,
    /// Number of lists segments; each costs a search some time.
    pub lists_segments: usize,
    /// Shortest list.
    pub shortest_list: u64,
    /// Mean length of a list.
    pub mean_list: f64,
    /// Longest list.
    pub longest_list: u64,
    /// `list_lengths[0]` = number of empty lists, `list_lengths[i]` = number with 2^(i−1) to 2^i − 1 entries.
    pub list_lengths: Vec<u64>,
}

/// Recall that the index reached.
#[derive(Clone, Debug, Serialize)]
pub struct CalibrationInfo {
    /// Neighbors asked for.
    pub k: usize,
    /// The most that a search can ask for.
    pub best_recall: f32,
    /// The same by raw keys, where they are kept.
    pub best_recall_by_keys: Option<f32>,
    /// Queries that it was measured with.
    pub queries: usize,
}

/// One file.
#[derive(Clone, Debug, Serialize)]
pub struct FileInfo {
    /// Its name.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// Its sections.
    pub sections: Vec<SectionInfo>,
}

/// One section.
#[derive(Clone, Debug, Serialize)]
pub struct SectionInfo {
    /// Name of its kind.
    pub section: String,
    /// Its length.
    pub bytes: u64,
}

impl Snapshot {
    /// Sizes, parameters and statistics; reads list offsets, nothing per entry.
    pub(crate) fn info(&self, folder: &Folder) -> Result<Info> {
        let manifest = &self.manifest;
        let describe = |file: &SegmentFile| FileInfo {
            file: file.path().file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default(),
            bytes: file.bytes(),
            sections: file
                .sections()
                .iter()
                .map(|s| SectionInfo { section: s.name(), bytes: s.span.len() as u64 })
                .collect(),
        };
        let index_bytes: u64 = self.codebook.iter().chain(&self.lists).map(|file| file.bytes()).sum();
        let name = Manifest::file_name(manifest.generation);
        let own = std::fs::metadata(folder.join(&name)).map_or(0, |metadata| metadata.len()); // gone: a newer one is there
        let own = FileInfo { file: name, bytes: own, sections: Vec::new() };
        let files: Vec<FileInfo> = self.files().map(|(_, file)| describe(file)).chain([own]).collect();
        let bytes: u64 = files.iter().map(|f| f.bytes).sum();
        let per_entry = |bytes: u64| if manifest.live() == 0 { 0.0 } else { bytes as f64 / manifest.live() as f64 };
        let unindexed: u64 = self.corpus()?.unindexed.iter().map(|b| b.bytes()).sum();
        let drift = manifest.fit.as_ref().and_then(Fit::drift);
        let index = self.with_index(|codebook, lists| {
            let mut lengths = vec![0u64; codebook.nlist()];
            for lists in lists {
                lengths.iter_mut().zip(lists.lengths()).for_each(|(sum, n)| *sum += n as u64);
            }
            let mut histogram = Vec::new();
            for &n in &lengths {
                let class = (u64::BITS - n.leading_zeros()) as usize;
                histogram.resize(histogram.len().max(class + 1), 0);
                histogram[class] += 1;
            }
            let reason = manifest.retrain_reason(codebook, manifest.live());
            Ok(IndexInfo {
                nlist: codebook.nlist(),
                m: if codebook.kind().levels { codebook.d() } else { codebook.m() },
                bits: codebook.bits(),
                second_bits: codebook.second_bits(),
                code_bytes: codebook.code_bytes(),
                default_nprobe: codebook.default_nprobe(),
                default_temperature: codebook.default_temperature(),
                seed: codebook.seed(),
                fit: manifest.fit,
                calibration: manifest.calibration.as_ref().map(calibration).unwrap_or_default(),
                drift: drift.filter(|drift| drift.is_finite()),
                retrain_advised: reason.is_some(),
                retrain_reason: reason,
                lists_segments: lists.len(),
                shortest_list: lengths.iter().copied().min().unwrap_or(0),
                mean_list: lengths.iter().sum::<u64>() as f64 / lengths.len().max(1) as f64,
                longest_list: lengths.iter().copied().max().unwrap_or(0),
                list_lengths: histogram,
            })
        })?;
        Ok(Info {
            path: folder.path().display().to_string(),
            generation: manifest.generation,
            format: format!("{}.{}", FORMAT_MAJOR, FORMAT_MINOR),
            entries: manifest.live(),
            next_id: manifest.entries,
            dim: manifest.dim,
            metric: manifest.metric,
            value_dtype: manifest.values,
            max_value: manifest.max_value,
            keep_keys: manifest.keep_keys,
            entries_with_keys: self
                .pieces(&(0..manifest.entries))
                .filter(|piece| piece.segment.keeps_keys())
                .map(|piece| piece.rows.len() as u64)
                .sum(),
            indexed: self.pieces(&(0..manifest.indexed())).map(|piece| piece.rows.len() as u64).sum(),
            deleted_documents: manifest.deleted.as_ref().map_or(0, |d| d.documents),
            deleted_entries: manifest.deleted.as_ref().map_or(0, |d| d.entries),
            documents: manifest.documents(),
            bytes,
            bytes_per_entry: per_entry(bytes),
            search_bytes_per_entry: per_entry(index_bytes + unindexed),
            index,
            files,
            attributes: manifest.attributes.clone(),
        })
    }
}

fn calibration(measured: &Calibration) -> Vec<CalibrationInfo> {
    let of = |rows: &[Setting], k: usize| rows.iter().filter(|row| row.k == k).copied().collect::<Vec<_>>();
    let mut neighbors: Vec<usize> = measured.rows.iter().map(|row| row.k).collect();
    neighbors.dedup();
    let describe = |k: usize| CalibrationInfo {
        k,
        best_recall: most(&of(&measured.rows, k)),
        best_recall_by_keys: Some(of(&measured.keys, k)).filter(|rows| !rows.is_empty()).map(|rows| most(&rows)),
        queries: measured.queries,
    };
    neighbors.into_iter().map(describe).collect()
}
