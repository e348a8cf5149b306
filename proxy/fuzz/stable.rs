//! Runs a fuzz target without a fuzzer: its corpus, then about a second of mutated corpus and random bytes.
//! Tests take it in with `#[path]`; see README.md.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

/// Seconds of mutations, for a longer run than the one of every day.
const TIME_VARIABLE: &str = "SIXFOLD_FUZZ_SECONDS";
const MAX_LEN: usize = 4096;

/// Feeds `check` every file of `corpus/<target>` and then mutations of them, made with `words` too. A failing
/// input is printed before the panic goes on.
pub(super) fn run(target: &str, words: &[&str], check: fn(&[u8])) {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = manifest
        .ancestors()
        .map(|dir| dir.join("proxy/fuzz/corpus").join(target))
        .find(|dir| dir.is_dir())
        .unwrap_or_else(|| panic!("no corpus for {target}"));
    let corpus: Vec<Vec<u8>> = std::fs::read_dir(&folder)
        .and_then(|entries| entries.map(|e| std::fs::read(e?.path())).collect())
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    assert!(!corpus.is_empty(), "an empty corpus in {}", folder.display());
    corpus.iter().for_each(|input| run_one(check, input));
    let mut rng = fastrand::Rng::new();
    let seconds = std::env::var(TIME_VARIABLE).ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(seconds) {
        for _ in 0..100 {
            let input = mutate(&corpus, words, &mut rng);
            run_one(check, &input);
        }
    }
}

fn run_one(check: fn(&[u8]), input: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(input))) {
        eprintln!("failing input: b\"{}\"", input.escape_ascii());
        resume_unwind(panic);
    }
}

fn mutate(corpus: &[Vec<u8>], words: &[&str], rng: &mut fastrand::Rng) -> Vec<u8> {
    let mut input = corpus[rng.usize(..corpus.len())].clone();
    for _ in 0..rng.usize(1..8) {
        let at = rng.usize(..=input.len());
        let to = (at + rng.usize(..16)).min(input.len());
        match rng.u8(..8) {
            0 if at < input.len() => input[at] = rng.u8(..),
            1 if at < input.len() => input[at] ^= 1 << rng.u8(..8),
            2 => input.insert(at, rng.u8(..)),
            3 => drop(input.drain(at..to)),
            4 => {
                let copy = input[at..to].to_vec();
                let into = rng.usize(..=input.len());
                input.splice(into..into, copy);
            }
            5 => {
                let other = &corpus[rng.usize(..corpus.len())];
                let from = rng.usize(..=other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ if !words.is_empty() => {
                let word = words[rng.usize(..words.len())].bytes();
                input.splice(at..at, word);
            }
            _ => {}
        }
    }
    input.truncate(MAX_LEN);
    input
}
