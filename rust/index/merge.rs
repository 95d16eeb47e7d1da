//! Joins lists of several segments that share a codebook: codes are moved, never made anew.

use super::block;
use super::codebook::Codebook;
use super::lists::Lists;
use crate::sections::{SectionKind, SectionSink};
use crate::simd::LANES;
use crate::work::Progress;
use crate::{Error, Result};
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of blocks that are handed on at a time.
const BUFFER: usize = 4 << 20;

/// Writes the list sections of the entries of `parts` (ascending ids from `first_id` on) that `keep` wants.
///
/// # Errors
/// `Damaged` for bytes that are not those that were written; `Format` for ids that do not fit; `Interrupted` once `cancel` is set; what `sink` returns.
pub fn merge_lists(
    codebook: &Codebook,
    parts: &[Lists],
    first_id: u64,
    keep: &dyn Fn(u64) -> bool,
    progress: Progress,
    cancel: &AtomicBool,
    sink: &mut dyn SectionSink,
) -> Result<()> {
    let nlist = codebook.nlist();
    for part in parts {
        part.check_ids()?;
    }
    let total = parts.iter().map(|p| p.len() as u64).sum();
    let mut offsets: Vec<u64> = vec![0];
    let mut ids: Vec<u32> = Vec::new();
    for list in 0..nlist {
        for part in parts {
            let (_, first) = part.list(list);
            for position in (first..first + part.list_len(list) as u32).filter(|&p| !part.is_lost(p)) {
                let id = part.id(position)?;
                if keep(id) {
                    let relative = id.checked_sub(first_id).and_then(|r| u32::try_from(r).ok());
                    ids.push(
                        relative.ok_or_else(|| {
                            part.wrong(format!("expected ids within 2³² from {first_id}, found {id}"))
                        })?,
                    );
                }
            }
        }
        offsets.push(ids.len() as u64);
    }
    let mut section = |kind: SectionKind, bytes: &[u8]| -> Result<()> {
        sink.begin(kind)?;
        sink.write(bytes)?;
        sink.end()
    };
    section(SectionKind::ListOffsets, bytemuck::cast_slice(&offsets))?;
    section(SectionKind::ListIds, bytemuck::cast_slice(&ids))?;

    let (coding, block_bytes) = (codebook.coding(), codebook.block_bytes());
    let mut codes = vec![0u8; coding.codes()];
    let mut out: Vec<u8> = Vec::new();
    sink.begin(SectionKind::Codes)?;
    let mut done = 0;
    for list in 0..nlist {
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let mut lane = 0;
        for part in parts {
            let (blocks, first) = part.list(list);
            for i in 0..part.list_len(list) {
                let position = first + i as u32;
                if part.is_lost(position) || !keep(part.id(position)?) {
                    continue;
                }
                let source = &blocks[i / LANES * block_bytes..][..block_bytes];
                part.check(source)?;
                let factors = block::get(coding, source, i % LANES, &mut codes);
                if lane == 0 {
                    out.resize(out.len() + block_bytes, 0);
                }
                let at = out.len() - block_bytes;
                block::put(coding, &mut out[at..], lane, &codes, factors);
                lane = (lane + 1) % LANES;
            }
        }
        if lane > 0 {
            let at = out.len() - block_bytes;
            (lane..LANES).for_each(|lane| block::put_padding(coding, &mut out[at..], lane));
        }
        if out.len() >= BUFFER {
            sink.write(&out)?;
            out.clear();
        }
        done += parts.iter().map(|p| p.list_len(list) as u64).sum::<u64>();
        progress("merge lists", done, total);
    }
    sink.write(&out)?;
    sink.end()?;
    if codebook.second_bytes().is_none() {
        return Ok(());
    }
    sink.begin(SectionKind::SecondCodes)?;
    for list in 0..nlist {
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        for part in parts {
            let (_, first) = part.list(list);
            for position in first..first + part.list_len(list) as u32 {
                if !part.is_lost(position) && keep(part.id(position)?) {
                    let record = part.record(position);
                    part.check(record)?;
                    sink.write(record)?;
                }
            }
        }
    }
    sink.end()
}
