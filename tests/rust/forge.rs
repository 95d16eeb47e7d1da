//! Files that are wrong in one place and right, checksums included, everywhere else.

use std::path::{Path, PathBuf};

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

/// Byte of the section table of a segment file and number of its entries.
pub fn table(bytes: &[u8]) -> (usize, usize) {
    let footer = bytes.len() - 64;
    (u64_at(bytes, footer) as usize, u32_at(bytes, footer + 8) as usize)
}

/// Makes the checksums of all sections right, as far as the section table can be believed.
pub fn sum(bytes: &mut [u8]) {
    const CHECKSUMS: u32 = 255;
    let (start, count) = table(bytes);
    let end = bytes.len() - 64;
    let entries: Vec<usize> = (0..count).map(|i| start.saturating_add(48 * i)).take_while(|e| e + 48 <= end).collect();
    let span = |bytes: &[u8], entry: usize| {
        let (offset, length) = (u64_at(bytes, entry + 8) as usize, u64_at(bytes, entry + 16) as usize);
        offset.checked_add(length).filter(|&end| end <= bytes.len()).map(|end| offset..end)
    };
    let Some(&last) = entries.iter().find(|&&entry| u32_at(bytes, entry) == CHECKSUMS) else { return };
    let Some(sums) = span(bytes, last) else { return };
    for &entry in entries.iter().filter(|&&entry| entry != last) {
        let Some(section) = span(bytes, entry) else { continue };
        let crcs: Vec<u8> = bytes[section].chunks(1 << 20).flat_map(|mib| crc32c::crc32c(mib).to_le_bytes()).collect();
        let at = (u64_at(bytes, entry + 24) as usize).checked_mul(4).and_then(|at| at.checked_add(sums.start));
        let Some(at) = at.filter(|at| at.checked_add(crcs.len()).is_some_and(|end| end <= sums.end)) else { continue };
        bytes[at..at + crcs.len()].copy_from_slice(&crcs);
        bytes[entry + 32..entry + 36].copy_from_slice(&crc32c::crc32c(&crcs).to_le_bytes());
    }
    let crc = crc32c::crc32c(&bytes[sums]);
    bytes[last + 32..last + 36].copy_from_slice(&crc.to_le_bytes());
}

/// Writes a segment file so that header, table, footer and manifest agree with it again.
pub fn seal(folder: &Path, name: &str, bytes: &mut [u8]) {
    let footer = bytes.len() - 64;
    let header_crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&header_crc.to_le_bytes());
    let table_crc = crc32c::crc32c(&bytes[table(bytes).0.min(footer)..footer]);
    bytes[footer + 12..footer + 16].copy_from_slice(&table_crc.to_le_bytes());
    let footer_crc = crc32c::crc32c(&bytes[footer..footer + 52]);
    bytes[footer + 52..footer + 56].copy_from_slice(&footer_crc.to_le_bytes());
    let path = folder.join(name);
    let _ = std::fs::remove_file(&path); // never write into a file that may be mapped
    std::fs::write(path, &*bytes).expect("write");
    change_manifest(folder, |body| {
        for list in ["data", "lists"] {
            body[list].as_array_mut().expect("list").iter_mut().filter(|d| d["file"] == name).for_each(|d| {
                d["crc32c"] = table_crc.into();
                d["bytes"] = bytes.len().into();
            });
        }
        for one in ["codebook", "deleted"] {
            if body[one]["file"] == name {
                body[one]["crc32c"] = table_crc.into();
                body[one]["bytes"] = bytes.len().into();
            }
        }
    });
}

/// The newest manifest.
pub fn manifest(folder: &Path) -> PathBuf {
    let names = std::fs::read_dir(folder).expect("list").map(|e| e.expect("entry").path());
    let is_manifest = |p: &PathBuf| p.extension().is_some_and(|e| e == "json");
    names.filter(is_manifest).max().expect("a manifest")
}

/// Edits the JSON of the manifest and gives it a right envelope.
pub fn change_manifest(folder: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let text = std::fs::read_to_string(manifest(folder)).expect("read");
    let (_, body) = text.split_once('\n').expect("two parts");
    let mut body: serde_json::Value = serde_json::from_str(body).expect("JSON");
    change(&mut body);
    write_manifest(folder, 1, &serde_json::to_string(&body).expect("JSON"));
}

/// Writes a body under the newest manifest's name with an envelope that fits it.
pub fn write_manifest(folder: &Path, major: u16, body: &str) {
    let crc = crc32c::crc32c(&[&major.to_le_bytes(), &[0, 0], body.as_bytes()].concat());
    let head =
        format!("{{\"knnlm\":\"manifest\",\"format\":[{major},0],\"bytes\":{},\"crc32c\":\"{crc:08x}\"}}", body.len());
    std::fs::write(manifest(folder), format!("{head}\n{body}")).expect("write");
}
