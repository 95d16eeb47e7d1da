//! A manifest with any body, its envelope right, beside the segment files of a real store.

#![no_main]

#[path = "../reader.rs"]
mod reader;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let &[what, kind, ref input @ ..] = input else { return };
    let base = reader::base(kind / 2);
    let body = match kind % 2 {
        // Odd inputs are edits of the real body, so that most of its structure survives.
        1 => {
            let mut body = base.body.clone();
            for edit in input.chunks_exact(4) {
                let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % body.len();
                match edit[2] % 3 {
                    0 => body[at] = edit[3],
                    1 => body.insert(at, edit[3]),
                    _ => drop(body.remove(at)),
                }
            }
            body
        }
        _ => input.to_vec(),
    };
    let manifest = reader::manifest(&body);
    base.with(&[(&base.manifest, &manifest)], reader::changes(what), |path| reader::exercise(path, what));
});
