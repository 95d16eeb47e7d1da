//! The sources of the crate as a graph: which file uses which.
//!
//! Read from the paths that files name (`crate::…`, `super::…`, child modules, modules that were imported), re-exports included,
//! without tests, comments and text in quotes. What a file imports or re-exports counts as the file that defines it.

use std::collections::BTreeMap;
use std::path::Path;

/// Path of a module from the root; of the root itself, none.
pub type Module = Vec<String>;

/// Source files by module, with what each imports or re-exports under which name.
#[derive(Default)]
pub struct Crate {
    /// What each file says.
    pub text: BTreeMap<Module, String>,
    names: BTreeMap<(Module, String), Module>,
}

impl Crate {
    /// This crate.
    pub fn read() -> Crate {
        let mut files = Vec::new();
        collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("rust"), &mut Vec::new(), &mut files);
        Crate::of(files)
    }

    /// Of files.
    pub fn of(files: Vec<(Module, String)>) -> Crate {
        let mut all = Crate::default();
        let mut tests: Vec<Module> = Vec::new();
        for (module, text) in files {
            let code = code(&text);
            let code = code.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            for (at, found) in code.match_indices("#[cfg(test)]\nmod ") {
                let name = code[at + found.len()..].split(';').next().unwrap_or_default();
                tests.push([&module[..], &[name.to_owned()]].concat());
            }
            all.text.insert(module, code.to_owned());
        }
        tests.iter().for_each(|module| drop(all.text.remove(module)));
        for (module, text) in &all.text {
            for (path, name) in named(text).0 {
                if let Some(path) = all.absolute(module, &path) {
                    all.names.insert((module.clone(), name), path);
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
            first => {
                let own = [&module[..], path].concat();
                let is_child = self.text.contains_key(&own[..=module.len()]);
                let imported = || self.names.get(&(module.clone(), first.to_owned()));
                if is_child { Some(own) } else { imported().map(|real| [&real[..], &path[1..]].concat()) }
            }
        }
    }

    /// The file in which what a path names is defined.
    fn file_of(&self, path: &[String]) -> Module {
        let depth = (0..=path.len()).rev().find(|&n| self.text.contains_key(&path[..n])).unwrap_or(0);
        let module = path[..depth].to_vec();
        match path.get(depth).and_then(|name| self.names.get(&(module.clone(), name.clone()))) {
            Some(real) => self.file_of(&[&real[..], &path[depth + 1..]].concat()),
            None => module,
        }
    }

    /// Which files use which.
    pub fn edges(&self) -> Vec<(Module, Module)> {
        let mut edges = Vec::new();
        for (module, text) in &self.text {
            let (uses, inline) = named(text);
            for path in uses.into_iter().map(|(path, _)| path).chain(inline) {
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

/// A source without comments and without what stands in quotes.
fn code(text: &str) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some(c) = rest.chars().next() {
        // A character in quotes, not the name of a lifetime.
        let is_character = c == '\'' && (rest[1..].starts_with('\\') || rest.chars().nth(2) == Some('\''));
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if c == '"' || is_character {
            quoted(rest, c)
        } else if c == 'r' && !out.ends_with(is_word) {
            raw(rest)
        } else {
            0
        };
        if skipped == 0 {
            out.push(c);
        }
        rest = &rest[if skipped == 0 { c.len_utf8() } else { skipped }..];
    }
    out
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Bytes of a raw string at the start; 0 if there is none.
fn raw(text: &str) -> usize {
    let hashes = text[1..].len() - text[1..].trim_start_matches('#').len();
    let Some(inner) = text[1 + hashes..].strip_prefix('"') else { return 0 };
    let end = format!("\"{}", "#".repeat(hashes));
    text.len() - inner.len() + inner.find(&end).map_or(inner.len(), |at| at + end.len())
}

/// Bytes of what stands in quotes at the start, quotes included.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => (),
        }
    }
    text.len()
}

/// A path, and the name that it is known by.
type Use = (Vec<String>, String);

/// Paths of all `use` statements with the names that they bring, and paths that stand elsewhere.
fn named(code: &str) -> (Vec<Use>, Vec<Vec<String>>) {
    let (mut uses, mut others, mut rest) = (Vec::new(), String::new(), code);
    let is_use = |rest: &str, at: usize| {
        !rest[..at].ends_with(is_word) && rest[at + "use".len()..].starts_with(char::is_whitespace)
    };
    while let Some((at, found)) = rest.match_indices("use").find(|&(at, _)| is_use(rest, at)) {
        others.push_str(&rest[..at]);
        let (tree, after) = rest[at + found.len()..].split_once(';').unwrap_or_default();
        expand(&mut Vec::new(), tree, &mut uses);
        rest = after;
    }
    others.push_str(rest);
    let all = others.split(|c: char| !is_word(c) && c != ':');
    let all = all.map(|path| path.trim_matches(':')).filter(|path| path.contains("::"));
    let paths = all.map(|path| path.split("::").map(str::to_owned).collect()).collect();
    (uses, paths)
}

/// Takes `a::{b, c::d as e}` apart.
fn expand(prefix: &mut Vec<String>, tree: &str, found: &mut Vec<Use>) {
    let tree = tree.trim();
    let braced = tree.strip_prefix('{').map(|rest| ("", rest)).or(tree.split_once("::{"));
    if let Some((head, rest)) = braced {
        let n = prefix.len();
        prefix.extend(head.split("::").map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()));
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
        let is_first = full.is_empty();
        full.extend(path.split("::").map(|part| part.trim().to_owned()).filter(|part| is_first || part != "self"));
        let name =
            if name.trim() == "self" { full.last().cloned().unwrap_or_default() } else { name.trim().to_owned() };
        found.push((full, name));
    }
}

fn module(path: &str) -> Module {
    path.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// Edges between the files of a crate that is given as (module, source), in words.
fn edges(files: &[(&str, &str)]) -> Vec<String> {
    let files = files.iter().map(|(path, text)| (module(path), (*text).to_owned())).collect();
    let words = |(from, to): (Module, Module)| format!("{} > {}", from.join("::"), to.join("::"));
    Crate::of(files).edges().into_iter().map(words).collect()
}

#[test]
fn a_re_export_is_a_use() {
    let files = [
        ("", "pub mod a;\npub mod b;\n"),
        ("a", "pub use crate::b::c::{Deep, Other as Known};\npub(crate) use super::b::B;"),
        ("b", "mod c;\n#[doc(hidden)]\npub use {c::Deep, c::Other};\npub struct B;"),
        ("b::c", "pub struct Deep; pub struct Other;"),
        ("d", "use crate::a::{Known, self};"),
    ];
    assert_eq!(edges(&files), ["a > b::c", "a > b::c", "a > b", "b > b::c", "b > b::c", "d > b::c", "d > a"]);
}

#[test]
fn a_path_beside_a_use_is_seen() {
    let files = [
        (
            "a",
            "fn f() { crate::b::f(crate::c::C) }\nuse crate::d::D;\nfn g() -> super::b::B { let cause = 1; super::c::g() }",
        ),
        ("b", "fn f() { use super::d::D; }"),
        ("c", ""),
        ("d", ""),
    ];
    assert_eq!(edges(&files), ["a > d", "a > b", "a > c", "a > b", "a > c", "b > d"]);
}

#[test]
fn what_a_module_that_was_imported_re_exports_is_seen() {
    let files = [
        ("a", "use crate::b;\nfn f() { b::C::new(std::cmp::min(1, 2)) }"),
        ("b", "mod c; pub use c::C;"),
        ("b::c", ""),
    ];
    assert_eq!(edges(&files), ["a > b", "a > b::c", "b > b::c"]);
}

#[test]
fn what_is_said_is_not_a_use() {
    let files = [
        (
            "a",
            "// use crate::b::B;\n/* crate::b::B */ const X: &str = \"use crate::b::B; \\\" crate::b::B\";\n\
            const Y: &str = r#\"crate::b \" crate::b\"#; const Q: char = '\"'; fn f<'a>(x: &'a str) { because crate::c::C }",
        ),
        ("b", "\n#[cfg(test)]\nmod tests {\n    use crate::c::C;\n}\n"),
        ("c", "#[cfg(test)]\nmod only;\n"),
        ("c::only", "use crate::a::A;"),
    ];
    assert_eq!(edges(&files), ["a > c"]);
}
