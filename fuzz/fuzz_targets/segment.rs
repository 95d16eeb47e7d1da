//! A segment file with bytes changed anywhere, header, table and footer right again, in a store that is sound otherwise.

#![no_main]

#[path = "../reader.rs"]
mod reader;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let [what, file, edits @ ..] = input else { return };
    let base = reader::base(file / 16);
    let name = &base.segments[usize::from(file % 16) % base.segments.len()];
    let mut bytes = base.bytes(name).to_vec();
    for edit in edits.chunks_exact(6) {
        let raw = u32::from_le_bytes([edit[0], edit[1], edit[2], 0]) as usize;
        // A third of the edits goes to the section table, which is small and decides most.
        let table = reader::table(&bytes);
        let at = if edit[3] % 3 == 0 { table + raw % (bytes.len() - table) } else { raw % bytes.len() };
        match edit[3] / 3 % 4 {
            0 => bytes[at] = edit[4],
            1 => bytes[at] = bytes[at].wrapping_add(edit[4]),
            2 if at + 8 <= bytes.len() => bytes[at..at + 8].fill(edit[4]),
            _ => bytes[at] ^= 1 << (edit[4] % 8),
        }
    }
    // Two bytes left over take blocks out before the section table: sections end beyond it then, if they are not moved.
    if let &[cut, _] = edits.chunks_exact(6).remainder() {
        reader::shorten(&mut bytes, usize::from(cut));
    }
    let crc = reader::seal(&mut bytes);
    let manifest = reader::manifest_with(base, name, crc, bytes.len());
    let changed: [(&str, &[u8]); 2] = [(name, &bytes), (&base.manifest, &manifest)];
    base.with(&changed, reader::changes(*what), |path| reader::exercise(path, *what));
});
