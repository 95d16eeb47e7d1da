//! Kills a writer at every fail-point and at random instants, and looks at what is left.
//!
//! `cargo test --test crash` runs a short form. The full one (stores of 100,000 entries, every fail-point of every step,
//! at least 200 kills) is `cargo test --release --test crash -- --full`; it prints a histogram by step and phase.
//! A child process does one step on a copy of a store through a file layer that reports every operation; it dies by its
//! own hand in the middle of an operation, or by SIGKILL at an instant that the parent draws. The store must then open
//! with exactly the entries from before the step or from after it, be sound to the last byte, and go on.

mod contents;
mod disk;

use contents::{Contents, STEPS, Size, Step};
use disk::{CrashDisk, Phase};
use knnlm::store::Datastore;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("--child") => child(&args[1..]),
        Some("--full") => campaign(Size::FULL, 120, 1),
        // Runners of tests pass options of their own, such as --nocapture: the short form needs none.
        _ => campaign(Size::SHORT, 10, 5),
    }
}

/// `--child PATH STEP ENTRIES FAILPOINT`: does the step, and dies in the middle of operation number FAILPOINT.
fn child(args: &[String]) {
    let [path, step, entries, failpoint] = args else { panic!("expected four arguments, found {args:?}") };
    let step = STEPS.into_iter().find(|s| s.name() == step).expect("a step");
    let size = Size { entries: entries.parse().expect("a number") };
    let disk = CrashDisk::new(failpoint.parse().expect("a number"));
    let store = Datastore::open_through(Path::new(path), Arc::new(disk)).expect("open");
    step.run(&store, size);
    println!("done");
}

/// What a child did before it ended.
struct Outcome {
    operations: u64,
    last: Option<Phase>,
    finished: bool,
}

/// Runs a child; `after` = when to kill it from outside.
fn run_child(path: &Path, step: Step, size: Size, failpoint: u64, after: Option<Duration>) -> Outcome {
    let mut child = Command::new(std::env::current_exe().expect("own path"))
        .arg("--child")
        .arg(path)
        .args([step.name().to_owned(), size.entries.to_string(), failpoint.to_string()])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("start a child");
    let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let reader = std::thread::spawn(move || {
        let mut outcome = Outcome { operations: 0, last: None, finished: false };
        for line in lines.map_while(Result::ok) {
            outcome.finished |= line == "done";
            if let Some(phase) = Phase::parse(&line) {
                outcome.operations += 1;
                outcome.last = Some(phase);
            }
        }
        outcome
    });
    if let Some(after) = after {
        std::thread::sleep(after);
        let _ = child.kill(); // it may have ended by itself
    }
    child.wait().expect("the child ends");
    reader.join().expect("the child's words")
}

/// A copy whose files are links: a store never changes a file that has its name.
fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir_all(to).expect("create folder");
    for entry in std::fs::read_dir(from).expect("list") {
        let entry = entry.expect("entry");
        if entry.file_name() == "lock" || entry.path().is_dir() {
            continue;
        }
        std::fs::hard_link(entry.path(), to.join(entry.file_name())).expect("link");
    }
}

struct Prepared {
    step: Step,
    path: PathBuf,
    before: Contents,
    after: Contents,
    operations: u64,
    seconds: Duration,
}

/// The stores that each step starts from, and what they hold before and after it.
fn prepare(folder: &Path, size: Size) -> Vec<Prepared> {
    STEPS
        .into_iter()
        .map(|step| {
            let path = folder.join(step.name());
            step.prepare(&path, size);
            let before = Contents::of(&Datastore::open(&path).expect("open"));
            let probe = folder.join("probe");
            let run = || {
                copy(&path, &probe);
                let started = Instant::now();
                let whole = run_child(&probe, step, size, u64::MAX, None);
                assert!(whole.finished, "{}: the step fails without a crash", step.name());
                (started.elapsed(), whole.operations)
            };
            // The least of three: a busy machine must not move the random instants behind the end.
            let (seconds, operations) = (0..3).map(|_| run()).min().expect("three runs");
            let after = Contents::of(&Datastore::open(&probe).expect("open"));
            assert!(before != after || step == Step::Compact, "{} changes something", step.name());
            println!(
                "{:<8} {:>4} operations, {} entries before, {} after",
                step.name(),
                operations,
                before.len(),
                after.len()
            );
            Prepared { step, path, before, after, operations, seconds }
        })
        .collect()
}

/// Every `every`-th fail-point of every step, and `random` kills at random instants.
fn campaign(size: Size, random: usize, every: usize) {
    let folder = tempfile::tempdir().expect("folder");
    let prepared = prepare(folder.path(), size);
    let victim = folder.path().join("victim");
    let mut histogram: BTreeMap<(&str, Phase), [usize; 2]> = BTreeMap::new();
    let (mut kills, mut within, mut old, mut new) = (0usize, 0usize, 0usize, 0usize);
    let mut look = |prepared: &Prepared, outcome: &Outcome, how: usize, what: &str| {
        if outcome.finished {
            return false;
        }
        kills += 1;
        within += usize::from(outcome.operations > 1 && outcome.operations < prepared.operations);
        let phase = outcome.last.unwrap_or(Phase::BEFORE);
        histogram.entry((prepared.step.name(), phase)).or_default()[how] += 1;
        let is_new = check(prepared, &victim, size, kills % 20 == 0, what);
        *(if is_new { &mut new } else { &mut old }) += 1;
        true
    };
    for prepared in &prepared {
        for failpoint in (0..prepared.operations).step_by(every) {
            copy(&prepared.path, &victim);
            let outcome = run_child(&victim, prepared.step, size, failpoint, None);
            assert!(
                look(prepared, &outcome, 0, &format!("fail-point {failpoint}")),
                "fail-point {failpoint} was not met"
            );
        }
    }
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut done = 0;
    while done < random {
        let prepared = &prepared[done % prepared.len()];
        copy(&prepared.path, &victim);
        let after = prepared.seconds.mul_f64(f64::from(rng.next_u32()) / f64::from(u32::MAX));
        let outcome = run_child(&victim, prepared.step, size, u64::MAX, Some(after));
        done += usize::from(look(prepared, &outcome, 1, &format!("killed after {after:?}")));
    }
    println!("\n{:<8} {:<28} {:>12} {:>8}", "step", "last operation", "fail-points", "random");
    for ((step, phase), [points, instants]) in &histogram {
        println!("{step:<8} {:<28} {points:>12} {instants:>8}", phase.to_string());
    }
    println!(
        "\n{kills} kills, {within} of them between the first and the last operation: {old} stores at the commit before, {new} at the one in flight, all sound"
    );
}

/// The store is as before or as after, sound, and takes further work. Returns whether it is as after.
fn check(prepared: &Prepared, path: &Path, size: Size, again: bool, what: &str) -> bool {
    let name = prepared.step.name();
    let store = Datastore::open(path).unwrap_or_else(|e| panic!("{name}, {what}: {e}"));
    assert_eq!(store.verify().expect("verify"), vec![], "{name}, {what}");
    let found = Contents::of(&store);
    let new = found.generation() == prepared.after.generation();
    let expected = if new { &prepared.after } else { &prepared.before };
    assert!(found == *expected, "{name}, {what}: neither the commit before nor the one in flight");
    if again && !new {
        prepared.step.run(&store, size);
        assert!(Contents::of(&store) == prepared.after, "{name}, {what}: the step done again differs");
    }
    contents::append(&store, 50, "after the crash");
    assert_eq!(store.len(), if again { prepared.after.len() } else { expected.len() } + 50, "{name}, {what}");
    assert_eq!(store.verify().expect("verify"), vec![], "{name}, {what}: going on");
    let left = std::fs::read_dir(path).expect("list").filter_map(|e| e.ok()?.file_name().into_string().ok());
    let left: Vec<String> = left.filter(|name| name.ends_with(".tmp")).collect();
    assert!(left.is_empty(), "{name}, {what}: left behind {left:?}");
    new
}
