//! The order of rooms: a room of the crate uses only those before it, no files or folders of a room use each other in a circle, and
//! docs/architecture.md tells what is so.

use crate::sources::{Crate, Module};
use std::collections::{BTreeMap, BTreeSet};

/// Rooms in order: each uses only those before it.
const ORDER: [&str; 18] = [
    "aligned",
    "error",
    "metric",
    "keys",
    "ids",
    "sections",
    "disk",
    "threads",
    "work",
    "simd",
    "exact",
    "index",
    "search",
    "store/format",
    "store/read",
    "store/write",
    "store",
    "python",
];

type Graph = BTreeMap<String, BTreeSet<String>>;

/// The room of a file; none for `lib.rs`, which names all.
fn room(module: &Module) -> Option<String> {
    let inner = module.get(..2).map(|two| two.join("/")).filter(|room| ORDER.contains(&room.as_str()));
    inner.or(module.first().cloned())
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
    let place = |room: &str| ORDER.iter().position(|known| *known == room).expect("a room that ORDER names");
    for (from, to) in Crate::read().edges() {
        let (Some(own), Some(used)) = (room(&from), room(&to)) else { continue };
        assert!(place(&used) <= place(&own), "{} uses {}, which comes after it", from.join("::"), to.join("::"));
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

/// Rooms of a row, what the row says that they use, and the row, as docs/architecture.md has them.
fn table() -> Vec<(Vec<String>, String, String)> {
    let text = include_str!("../../docs/architecture.md").split("## The house: the crate").nth(1).expect("a section");
    let section = text.split("\n## ").next().expect("its text");
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let names = cells[1].split('`').map(|name| name.trim().trim_end_matches('/')).filter(|name| !name.is_empty());
        (names.map(str::to_owned).collect(), cells[2].to_owned(), row.to_owned())
    })
    .collect()
}

#[test]
fn the_architecture_tells_the_rooms_what_they_use_and_their_files() {
    let (all, table) = (Crate::read(), table());
    assert_eq!(table.iter().flat_map(|row| row.0.clone()).collect::<Vec<_>>(), ORDER);
    let edges = all.edges();
    for (rooms, told, row) in table.iter().filter(|row| row.0.len() == 1) {
        let own = |module: &Module| room(module).as_ref() == Some(&rooms[0]);
        let used: BTreeSet<String> =
            edges.iter().filter(|edge| own(&edge.0)).filter_map(|edge| room(&edge.1)).collect();
        let used = ORDER.iter().filter(|room| used.contains(**room) && **room != rooms[0]).copied().collect::<Vec<_>>();
        assert_eq!(*told, if used.is_empty() { "–".to_owned() } else { used.join(", ") }, "{}", rooms[0]);
        let files = all.text.keys().filter(|module| own(module) && module.join("/") != rooms[0]);
        let files: BTreeSet<&str> = files.map(|module| module[module.len() - 1].as_str()).collect();
        let named: BTreeSet<&str> = row.split('|').nth(3).expect("a cell").split('`').skip(1).step_by(2).collect();
        assert_eq!(named, files, "files of {}", rooms[0]);
    }
}
