//! The order of rooms: a room of the crate uses only those before it, and no files or folders of a room use each other in a circle.
//!
//! Read from the paths that files name (`crate::…`, `super::…`, child modules), without tests and comments. What a `mod.rs`
//! re-exports counts as the file that defines it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Rooms in order: each uses only those before it.
const ORDER: [&str; 15] = [
    "aligned", "error", "metric", "keys", "ids", "sections", "disk", "threads", "work", "simd", "exact", "index",
    "search", "store", "python",
];

type Module = Vec<String>;
type Graph = BTreeMap<String, BTreeSet<String>>;

/// Source files by module, with what each re-exports under which name.
#[derive(Default)]
struct Crate {
    text: BTreeMap<Module, String>,
    exports: BTreeMap<(Module, String), Module>,
}

impl Crate {
    fn read() -> Crate {
        let mut files = Vec::new();
        collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("rust"), &mut Vec::new(), &mut files);
        let mut all = Crate::default();
        let mut tests: Vec<Module> = Vec::new();
        for (module, text) in files {
            let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned();
            for (_, rest) in code.match_indices("#[cfg(test)]\nmod ").map(|(at, m)| (at, &code[at + m.len()..])) {
                let name = rest.split(';').next().unwrap_or_default();
                tests.push([&module[..], &[name.to_owned()]].concat());
            }
            let code = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>();
            all.text.insert(module, code.join("\n"));
        }
        tests.iter().for_each(|module| drop(all.text.remove(module)));
        for (module, text) in &all.text {
            for (path, name) in uses(text, true) {
                if let Some(path) = all.absolute(module, &path) {
                    all.exports.insert((module.clone(), name), path);
                }
            }
        }
        all
    }

    /// A path as it is written in a module, from the root; none for a path of another crate.
    fn absolute(&self, module: &Module, path: &[String]) -> Option<Module> {
        let up = path.iter().take_while(|part| *part == "super").count();
        match path.first()?.as_str() {
            "crate" => Some(path[1..].to_vec()),
            "super" => Some([&module[..module.len().checked_sub(up)?], &path[up..]].concat()),
            "self" => Some([&module[..], &path[1..]].concat()),
            _ => {
                let own = [&module[..], path].concat();
                self.text.contains_key(&own[..=module.len()]).then_some(own)
            }
        }
    }

    /// The file in which what a path names is defined.
    fn file_of(&self, path: &[String]) -> Module {
        let depth = (0..=path.len()).rev().find(|&n| self.text.contains_key(&path[..n])).unwrap_or(0);
        let module = path[..depth].to_vec();
        match path.get(depth).and_then(|name| self.exports.get(&(module.clone(), name.clone()))) {
            Some(real) => self.file_of(&[&real[..], &path[depth + 1..]].concat()),
            None => module,
        }
    }

    /// Which files use which.
    fn edges(&self) -> Vec<(Module, Module)> {
        let mut edges = Vec::new();
        for (module, text) in &self.text {
            let inline = paths(text);
            for path in uses(text, false).into_iter().map(|(path, _)| path).chain(inline) {
                if let Some(path) = self.absolute(module, &path) {
                    let target = self.file_of(&path);
                    if target != *module {
                        edges.push((module.clone(), target));
                    }
                }
            }
        }
        edges
    }
}

fn collect(folder: &Path, module: &mut Module, files: &mut Vec<(Module, String)>) {
    for entry in std::fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        if path.is_dir() {
            module.push(name);
            collect(&path, module, files);
            module.pop();
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let own = if name == "mod" || name == "lib" { module.clone() } else { [&module[..], &[name]].concat() };
            files.push((own, std::fs::read_to_string(&path).expect("text")));
        }
    }
}

/// Paths of `use` statements with the names that they bring: those that are re-exports, or the others.
fn uses(text: &str, exported: bool) -> Vec<(Vec<String>, String)> {
    let mut found = Vec::new();
    for statement in text.split(';') {
        let Some(at) = statement.rfind("use ").filter(|&at| at == 0 || statement[..at].ends_with([' ', '\n'])) else {
            continue;
        };
        let before = statement[..at].rsplit(['\n', '}']).next().unwrap_or_default().trim();
        if before.starts_with("pub") == exported && (before.is_empty() || before.starts_with("pub")) {
            expand(&mut Vec::new(), &statement[at + 4..], &mut found);
        }
    }
    found
}

/// Takes `a::{b, c::d as e}` apart.
fn expand(prefix: &mut Vec<String>, tree: &str, found: &mut Vec<(Vec<String>, String)>) {
    let tree = tree.trim();
    if let Some((head, rest)) = tree.split_once("::{") {
        let n = prefix.len();
        prefix.extend(head.split("::").map(|part| part.trim().to_owned()));
        let (mut depth, mut start) = (0, 0);
        let inner = &rest[..rest.rfind('}').unwrap_or(rest.len())];
        for (i, c) in inner.char_indices().chain([(inner.len(), ',')]) {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    expand(prefix, &inner[start..i], found);
                    start = i + 1;
                }
                _ => (),
            }
        }
        prefix.truncate(n);
    } else if !tree.is_empty() {
        let (path, name) = tree.split_once(" as ").unwrap_or((tree, tree.rsplit("::").next().unwrap_or(tree)));
        let mut full = prefix.clone();
        full.extend(path.split("::").map(|part| part.trim().to_owned()).filter(|part| part != "self"));
        found.push((full, name.trim().to_owned()));
    }
}

/// Paths that begin with `crate::` or `super::` wherever they stand.
fn paths(text: &str) -> Vec<Vec<String>> {
    let code = text.split_inclusive(';').filter(|part| !part.contains("use ")).collect::<String>();
    let word = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let all = code.split(|c: char| !word(c)).filter(|path| path.starts_with("crate::") || path.starts_with("super::"));
    all.map(|path| path.trim_end_matches(':').split("::").map(str::to_owned).collect()).collect()
}

/// A circle of a graph, if it has one.
fn circle(graph: &Graph) -> Option<Vec<String>> {
    let mut left = graph.clone();
    // What uses nothing that is left is in no circle.
    loop {
        let free: Vec<String> = (left.iter())
            .filter(|(_, uses)| uses.iter().all(|used| !left.contains_key(used)))
            .map(|(node, _)| node.clone())
            .collect();
        if free.is_empty() {
            break;
        }
        free.iter().for_each(|node| drop(left.remove(node)));
    }
    let mut path = vec![left.keys().next()?.clone()];
    loop {
        let next = left[&path[path.len() - 1]].iter().find(|used| left.contains_key(*used))?.clone();
        if let Some(at) = path.iter().position(|node| *node == next) {
            path.push(next);
            return Some(path.split_off(at));
        }
        path.push(next);
    }
}

#[test]
fn a_room_uses_only_those_before_it() {
    let place = |module: &Module| module.first().map(|room| ORDER.iter().position(|known| known == room));
    for (from, to) in Crate::read().edges() {
        let (Some(own), Some(used)) = (place(&from), place(&to)) else { continue }; // lib.rs names all
        let (own, used) = (own.expect("a room that ORDER names"), used.expect("a room that ORDER names"));
        assert!(used <= own, "{} uses {}, which comes after it", from.join("::"), to.join("::"));
    }
}

#[test]
fn no_circle_lies_in_a_room() {
    let all = Crate::read();
    let edges = all.edges();
    assert!(edges.len() > 300, "found only {} uses", edges.len());
    let mut circles = Vec::new();
    // Of files, and, in each folder, of what lies in it.
    let files = edges.iter().map(|(from, to)| (from.join("::"), to.join("::")));
    let folders: BTreeSet<&[String]> =
        all.text.keys().flat_map(|module| (0..module.len()).map(|n| &module[..n])).collect();
    let inside = folders.iter().map(|folder| {
        let n = folder.len();
        let inner = edges
            .iter()
            .filter(|(from, to)| from.len() > n && to.len() > n && from[..n] == to[..n] && from[..n] == **folder);
        inner
            .filter(|(from, to)| from[n] != to[n])
            .map(|(from, to)| (from[..=n].join("::"), to[..=n].join("::")))
            .collect()
    });
    for edges in [files.collect::<Vec<_>>()].into_iter().chain(inside) {
        let mut graph = Graph::new();
        for (from, to) in edges {
            graph.entry(to.clone()).or_default();
            graph.entry(from).or_default().insert(to);
        }
        circles.extend(circle(&graph).map(|circle| circle.join(" -> ")));
    }
    assert!(circles.is_empty(), "files or folders that use each other in a circle: {circles:#?}");
}
