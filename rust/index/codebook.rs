//! What all lists of a store share: centroids, rotation, product-quantiser words, calibration.
//!
//! Sections: *Parameters* JSON of [`Parameters`]; *Centroids* nlist × d f32; *Words* m × dsub × 2^bits f32; *Derived*
//! f32: the mean that is subtracted first (d; zero for inner products), then for the centroids less the mean, padded to
//! whole tiles of 32, |c|² (padding +∞; zero for inner products), then the centroids in panels of d × 16.

use super::bytes::padded;
use super::coarse::{Centroids, Coarse};
use super::coding::Coding;
use super::params::CodeKind;
use super::quantiser::Shape;
use super::rotation::Rotation;
use super::second;
use crate::error::RESTORE;
use crate::exact::sweep::Panels;
use crate::sections::{SectionKind, SectionSource, typed};
use crate::simd::{Kernels, TILE_LANES};
use crate::{Error, Metric, Result};
use once_cell::race::OnceBox;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Greatest dimension of a key.
pub const MOST_DIMENSIONS: usize = 1 << 16;

/// The Parameters section.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)] // a later version's codes would be read as something else
pub struct Parameters {
    /// Dimension of the keys.
    pub d: usize,
    /// How keys are compared.
    pub metric: Metric,
    /// Number of lists.
    pub nlist: usize,
    /// Sub-quantisers.
    pub m: usize,
    /// Bits per sub-quantiser.
    pub bits: u8,
    /// Dimensions per sub-quantiser.
    pub dsub: usize,
    /// Bits per coordinate of the second-level code; 0: there is none.
    #[serde(default)]
    pub second_bits: u8,
    /// Whether entries are coded coordinate by coordinate; the words then serve the coarse step alone.
    #[serde(default)]
    pub levels: bool,
    /// Seed of every random choice, the rotation among them.
    pub seed: u64,
    /// Lists that a search scans by default.
    pub default_nprobe: usize,
    /// Softmax temperature from the store's own distances.
    pub default_temperature: f32,
    /// Number of entries that it was trained for.
    pub trained_on: u64,
}

/// What opening a codebook found out, for opening it again without reading and checking anything twice.
#[derive(Clone)]
pub struct KeptCodebook {
    parameters: Arc<Parameters>,
    rotation: Arc<Rotation>,
    coarse: Arc<OnceBox<Coarse>>,
}

/// A trained codebook: views of the sections of its segment file.
pub struct Codebook<'a> {
    pub(crate) parameters: Arc<Parameters>,
    pub(crate) centroids: &'a [f32],
    pub(crate) words: &'a [f32],
    pub(crate) mean: &'a [f32],
    pub(crate) norms: &'a [f32],
    pub(crate) panels: &'a [f32],
    pub(crate) rotation: Arc<Rotation>,
    coarse: Arc<OnceBox<Coarse>>,
}

impl<'a> Codebook<'a> {
    /// Views and validates the codebook sections for keys of dimension `d`. Copies nothing.
    ///
    /// # Errors
    /// `Format`, naming the file, for sections that do not fit together.
    pub fn open(source: &'a dyn SectionSource, d: usize, metric: Metric) -> Result<Codebook<'a>> {
        let parameters = source.section(SectionKind::Parameters)?;
        source.check(parameters)?;
        let p: Parameters = serde_json::from_slice(parameters).map_err(|e| {
            source.format_error(format!("the codebook's parameters are not the expected JSON ({e}); build again"))
        })?;
        if p.d != d || p.metric != metric {
            return Err(wrong(source, "keys", format!("d = {d}, {metric:?}"), format!("d = {}, {:?}", p.d, p.metric)));
        }
        let fits = p.m.checked_mul(p.dsub).is_some_and(|padded| padded >= d && padded <= 16 * MOST_DIMENSIONS);
        if !(1..=MOST_DIMENSIONS).contains(&d)
            || !fits
            || !matches!(p.bits, 4 | 8)
            || !matches!(p.second_bits, 0 | 4)
            || (p.bits == 4 && !p.m.is_multiple_of(8))
            || (p.levels && p.second_bits != 0)
        {
            return Err(wrong(source, "code", format!("m × dsub to cover d = {d}, 4 or 8 bits"), format!("{p:?}")));
        }
        if p.nlist < 1
            || p.default_nprobe < 1
            || p.default_nprobe > p.nlist
            || p.default_temperature.is_nan()
            || p.default_temperature <= 0.0
        {
            return Err(wrong(
                source,
                "parameters",
                "1 ≤ default_nprobe ≤ nlist, temperature > 0".into(),
                format!("{p:?}"),
            ));
        }
        let rotation = Rotation::new(d, p.seed);
        Codebook::view(
            source,
            &KeptCodebook { parameters: Arc::new(p), rotation: Arc::new(rotation), coarse: Arc::default() },
        )
    }

    /// Views the sections of a codebook that was opened before.
    ///
    /// # Errors
    /// `Format` if `source` is not the file that `kept` came from.
    pub fn view(source: &'a dyn SectionSource, kept: &KeptCodebook) -> Result<Codebook<'a>> {
        let (p, d) = (&*kept.parameters, kept.parameters.d);
        let floats = |kind: SectionKind, expected: Option<usize>| -> Result<&'a [f32]> {
            let found: &[f32] = typed(source, kind)?;
            if expected != Some(found.len()) {
                let expected = expected.map_or("fewer".into(), |n| n.to_string());
                return Err(wrong(source, &format!("{kind:?}"), format!("{expected} floats"), found.len().to_string()));
            }
            Ok(found)
        };
        let centroids = floats(SectionKind::Centroids, p.nlist.checked_mul(d))?;
        let words = floats(SectionKind::Words, (p.m * p.dsub).checked_mul(1 << p.bits))?;
        let padded = p.nlist.checked_next_multiple_of(TILE_LANES);
        let derived = padded.and_then(|n| n.checked_mul(d + 1)?.checked_add(d));
        let derived = floats(SectionKind::Derived, derived)?;
        let (mean, rest) = derived.split_at(d);
        let (norms, panels) = rest.split_at(p.nlist.next_multiple_of(TILE_LANES));
        // A list that does not exist must never be the nearest.
        if let Some(found) = norms[p.nlist..].iter().find(|&&x| x != f32::INFINITY) {
            return Err(wrong(source, "norms", "padding of +∞".into(), found.to_string()));
        }
        let KeptCodebook { parameters, rotation, coarse } = kept.clone();
        Ok(Codebook { parameters, centroids, words, mean, norms, panels, rotation, coarse })
    }

    /// What [`Self::view`] needs.
    pub fn keep(&self) -> KeptCodebook {
        KeptCodebook {
            parameters: self.parameters.clone(),
            rotation: self.rotation.clone(),
            coarse: self.coarse.clone(),
        }
    }

    /// Dimension of the keys.
    pub fn d(&self) -> usize {
        self.parameters.d
    }

    /// How keys are compared.
    pub fn metric(&self) -> Metric {
        self.parameters.metric
    }

    /// Number of lists.
    pub fn nlist(&self) -> usize {
        self.parameters.nlist
    }

    /// Number of sub-quantisers.
    pub fn m(&self) -> usize {
        self.parameters.m
    }

    /// Bits per sub-quantiser: 4 or 8.
    pub fn bits(&self) -> u8 {
        self.parameters.bits
    }

    /// Bits per coordinate of the second-level code: 4, or 0 if there is none.
    pub fn second_bits(&self) -> u8 {
        self.parameters.second_bits
    }

    /// Bytes of one entry's code, without its two factors.
    pub fn code_bytes(&self) -> usize {
        self.coding().code_bytes()
    }

    /// Lists that a search scans when not told otherwise.
    pub fn default_nprobe(&self) -> usize {
        self.parameters.default_nprobe
    }

    /// Softmax temperature that fits the distances of this store, for use before tuning: a sixth of the median over
    /// sampled stored keys of d_k − d_1 among their own neighbors, k = 1024 (or a tenth of a smaller store).
    pub fn default_temperature(&self) -> f32 {
        self.parameters.default_temperature
    }

    /// Number of keys that it was learnt from.
    pub fn trained_on(&self) -> u64 {
        self.parameters.trained_on
    }

    /// Seed that it was trained with.
    pub fn seed(&self) -> u64 {
        self.parameters.seed
    }

    pub(crate) fn shape(&self) -> Shape {
        let p = &self.parameters;
        Shape { m: p.m, bits: p.bits, dsub: p.dsub }
    }

    /// How entries are coded.
    pub(crate) fn coding(&self) -> Coding {
        if self.parameters.levels { Coding::Levels { width: padded(self.d()) } } else { Coding::Product(self.shape()) }
    }

    /// Kind of the code, to compare with what is asked for.
    pub fn kind(&self) -> CodeKind {
        let p = &self.parameters;
        CodeKind { m: p.m, bits: p.bits, second_bits: p.second_bits, levels: p.levels }
    }

    /// Bytes of a block of 16 entries: codes, then factors.
    pub(crate) fn block_bytes(&self) -> usize {
        self.coding().block_bytes()
    }

    /// Centroids in f32: score + |q|² = |q − c|², or score = −⟨q, c⟩.
    pub(crate) fn float_panels(&self) -> Panels<'_> {
        let scale = if self.metric() == Metric::L2 { -2.0 } else { -1.0 };
        Panels { d: self.d(), data: self.panels, offsets: self.norms, scale }
    }

    /// Centroids for the coarse step, packed when first asked for. Threads that ask at once pack them each, and the first
    /// is kept: none waits for another, which a forked child would do for ever.
    pub(crate) fn coarse(&self, kernels: &Kernels) -> &Coarse {
        let centroids = || Centroids {
            rows: self.centroids,
            mean: self.mean,
            words: self.words,
            shape: self.shape(),
            rotation: &self.rotation,
            metric: self.metric(),
        };
        self.coarse.get_or_init(|| Box::new(Coarse::new(kernels, &centroids())))
    }

    /// Bytes of a second-level record; none if entries have none.
    pub fn second_bytes(&self) -> Option<usize> {
        (self.parameters.second_bits == 4).then(|| second::record_bytes(self.d()))
    }

    /// Centroid `list` in the space of the keys.
    pub(crate) fn centroid(&self, list: usize) -> &[f32] {
        &self.centroids[list * self.d()..(list + 1) * self.d()]
    }
}

/// What does not fit in a section of a codebook.
fn wrong(source: &dyn SectionSource, what: &str, expected: String, found: String) -> Error {
    source.format_error(format!("codebook {what}: expected {expected}, found {found}; {RESTORE}"))
}
