//! Names of the files of a store: the one list of kinds of segments.

use super::files::TEMPORARY;
use super::layout::SegmentKind;
use super::manifest::Manifest;

/// Ending of a segment file.
const ENDING: &str = ".seg";

/// Stems of the files that hold values and documents until their segment is finished.
pub(crate) const SPILL_NAMES: [&str; 3] = ["values", "documents", "text"];

impl SegmentKind {
    /// Every kind that this version knows.
    pub const ALL: [SegmentKind; 4] =
        [SegmentKind::Data, SegmentKind::Codebook, SegmentKind::Lists, SegmentKind::Deleted];

    /// What names of the kind begin with.
    fn stem(self) -> &'static str {
        match self {
            SegmentKind::Data => "data",
            SegmentKind::Codebook => "codebook",
            SegmentKind::Lists => "lists",
            SegmentKind::Deleted => "deleted",
        }
    }

    /// Name of the file of a generation.
    pub fn file_name(self, generation: u64) -> String {
        format!("{}-{generation:08}{ENDING}", self.stem())
    }

    /// The same for one of several of a generation: the first has that name, a further one its first id in addition.
    pub(crate) fn part_name(self, generation: u64, first: bool, first_id: u64) -> String {
        if first { self.file_name(generation) } else { format!("{}-{generation:08}-{first_id}{ENDING}", self.stem()) }
    }

    /// Kind and generation of a name; none if it is no such name.
    pub(crate) fn of_name(name: &str) -> Option<(SegmentKind, u64)> {
        let stem = name.strip_suffix(ENDING)?;
        SegmentKind::ALL.into_iter().find_map(|kind| {
            let digits = stem.strip_prefix(kind.stem())?.strip_prefix('-')?;
            let generation = digits.split('-').next()?;
            let plain = digits.bytes().all(|b| b.is_ascii_digit() || b == b'-') && generation.len() >= 8;
            plain.then(|| Some((kind, generation.parse().ok()?))).flatten()
        })
    }
}

/// Name of a lists segment that several were joined to.
pub(crate) fn joined_name(generation: u64, first_id: u64, entries: u64) -> String {
    format!("{}-{generation:08}-{first_id}-{entries}{ENDING}", SegmentKind::Lists.stem())
}

/// Whether a file is one that a writer was making.
pub(crate) fn is_temporary(name: &str) -> bool {
    let stem = name.strip_suffix(TEMPORARY).unwrap_or("");
    SegmentKind::of_name(stem).is_some() || Manifest::generation_of(stem).is_some() || SPILL_NAMES.contains(&stem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_what_they_are_of() {
        for kind in SegmentKind::ALL {
            for generation in [0, 7, 99_999_999, 100_000_000, u64::MAX] {
                for name in [kind.file_name(generation), kind.part_name(generation, false, 12)] {
                    assert_eq!(SegmentKind::of_name(&name), Some((kind, generation)));
                    assert!(is_temporary(&format!("{name}{TEMPORARY}")) && !is_temporary(&name));
                }
                assert_eq!(kind.part_name(generation, true, 12), kind.file_name(generation));
            }
        }
        assert_eq!(SegmentKind::of_name(&joined_name(3, 5, 9)), Some((SegmentKind::Lists, 3)));
        for other in
            ["data-1.seg", "data-00000001", "data-0000000x.seg", "keys-00000001.seg", "data00000001.seg", "data.seg"]
        {
            assert_eq!(SegmentKind::of_name(other), None, "{other}");
        }
        assert!(is_temporary("values.tmp") && is_temporary("manifest-00000001.json.tmp") && !is_temporary("notes.tmp"));
    }
}
