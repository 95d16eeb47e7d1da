//! What a folder holds beside the current generation, removed.

use crate::Error;
use crate::store::format::files::Folder;
use crate::store::format::layout::SegmentKind;
use crate::store::format::manifest::Manifest;
use crate::store::format::names::is_temporary;
use std::collections::HashSet;

/// Removes what no reader of the current generation needs: temporary files, older manifests, unnamed segments. Returns the
/// first failure, which the next writer may leave behind (Windows refuses to remove a mapped file).
pub fn collect(folder: &Folder, current: &Manifest) -> Option<Error> {
    let wanted: HashSet<&str> = current.segments().map(|(_, name)| name.file.as_str()).collect();
    let names = folder.names().unwrap_or_default();
    if names.iter().filter_map(|name| Manifest::generation_of(name)).any(|g| g > current.generation) {
        // A newer generation names files that this one does not know: it was published, but could not be opened here.
        return None;
    }
    let mut failure = None;
    for name in names {
        let old = Manifest::generation_of(&name).is_some_and(|generation| generation < current.generation);
        let orphan = SegmentKind::of_name(&name).is_some() && !wanted.contains(name.as_str());
        if old || orphan || is_temporary(&name) {
            failure = failure.or(folder.remove(&name).err());
        }
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::format::files::Disk;
    use crate::store::format::records::ValueType;
    use crate::store::{Datastore, Options};
    use std::sync::Arc;

    #[test]
    fn an_older_generation_collects_nothing() {
        let dir = tempfile::tempdir().expect("folder");
        let options = Options {
            dim: 2,
            metric: crate::Metric::L2,
            keep_keys: None,
            values: ValueType::Uint32,
            max_value: None,
            attributes: None,
            overwrite: false,
        };
        let path = dir.path().join("store");
        let mine = Datastore::create(&path, &options).expect("create").snapshot().manifest.clone();
        let folder = Folder::new(&path, Arc::new(Disk));
        let newer = path.join(format!("manifest-{:08}.json", mine.generation + 1));
        let data = path.join(format!("data-{:08}.seg", mine.generation + 1));
        for file in [&newer, &data] {
            std::fs::write(file, b"published by somebody else").expect("write");
        }
        collect(&folder, &mine);
        assert!(newer.exists() && data.exists());
        std::fs::remove_file(&newer).expect("remove");
        collect(&folder, &mine);
        assert!(!data.exists(), "an orphan of no generation goes");
    }
}
