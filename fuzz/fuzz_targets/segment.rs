//! A segment file with bytes changed anywhere, header, table and footer right again, in a store that is sound otherwise.

#![no_main]

#[path = "../reader.rs"]
mod reader;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let base = reader::base();
    let Some((&file, edits)) = input.split_first() else { return };
    let name = base.segments[usize::from(file) % base.segments.len()].clone();
    let mut table_crc = None;
    let folder = base.copy(|found, bytes| {
        if found == name {
            for edit in edits.chunks_exact(6) {
                let raw = u32::from_le_bytes([edit[0], edit[1], edit[2], 0]) as usize;
                // A third of the edits goes to the section table, which is small and decides most.
                let table = reader::table(bytes);
                let at = if edit[3] % 3 == 0 { table + raw % (bytes.len() - table) } else { raw % bytes.len() };
                match edit[3] / 3 % 4 {
                    0 => bytes[at] = edit[4],
                    1 => bytes[at] = bytes[at].wrapping_add(edit[4]),
                    2 if at + 8 <= bytes.len() => bytes[at..at + 8].fill(edit[4]),
                    _ => bytes[at] ^= 1 << (edit[4] % 8),
                }
            }
            table_crc = Some((reader::seal(bytes), bytes.len()));
        }
    });
    if let Some((crc, length)) = table_crc {
        reader::rename_in_manifest(folder.path(), &base, &name, crc, length);
    }
    reader::exercise(folder.path());
});
