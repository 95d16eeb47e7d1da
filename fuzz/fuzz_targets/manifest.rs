//! A manifest with any body, its envelope right, beside the segment files of a real store.

#![no_main]

#[path = "../reader.rs"]
mod reader;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let base = reader::base();
    let Some((&what, input)) = input.split_first() else { return };
    let body = match input.split_first() {
        // Odd inputs are edits of the real body, so that most of its structure survives.
        Some((kind, edits)) if kind % 2 == 1 => {
            let mut body = base.body.clone();
            for edit in edits.chunks_exact(4) {
                let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % body.len();
                match edit[2] % 3 {
                    0 => body[at] = edit[3],
                    1 => body.insert(at, edit[3]),
                    _ => drop(body.remove(at)),
                }
            }
            body
        }
        Some((_, text)) => text.to_vec(),
        None => return,
    };
    let manifest = reader::manifest(&body);
    base.with(&[(&base.manifest, &manifest)], reader::changes(what), |path| reader::exercise(path, what));
});
