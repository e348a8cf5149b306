//! Conditions of lists.

use super::input::{Input, Subject};
use crate::cel::Program;
use crate::matcher::{StringMatcher, ValueMatcher};
use crate::regex::work;
use ipnet::IpNet;
use xxhash_rust::xxh64::xxh64;

/// A test of an [`Input`].
#[derive(Debug)]
pub enum Test {
    /// Of its text.
    Text(StringMatcher),
    /// An address within one of these (`envoy.extensions.matching.input_matchers.ip`).
    Ip(Box<[IpNet]>),
    /// Of metadata, or the opposite (`...input_matchers.metadata`).
    Value(ValueMatcher, bool),
    /// Its hash, of so many, is at least the threshold (`...input_matchers.consistent_hashing`).
    Hash {
        /// How many hashes there are; not 0.
        modulo: u64,
        /// The least that passes.
        threshold: u64,
        /// Where the hash begins.
        seed: u64,
    },
    /// An expression over [`Input::Attributes`] (`xds.type.matcher.v3.CelMatcher`).
    Cel(Program),
}

/// A condition.
#[derive(Debug)]
pub enum Predicate {
    /// A test.
    Single(Input, Test),
    /// One holds.
    Any(Box<[Predicate]>),
    /// All hold.
    All(Box<[Predicate]>),
    /// It does not hold.
    Not(Box<Predicate>),
}

/// What a condition can't do without: an input that is this text, or begins with it.
pub(super) struct Need<'p> {
    pub(super) input: &'p Input,
    pub(super) text: &'p [u8],
    /// Whether it is the whole text.
    pub(super) whole: bool,
}

impl Predicate {
    /// Whether it holds. What could not be tried to its end does not, nor does its opposite.
    pub(super) fn holds(&self, subject: Subject<'_>) -> bool {
        match self {
            Predicate::Single(input, test) => test.passes(input, subject),
            Predicate::Any(any) => {
                let holds = |predicate: &Predicate| predicate.holds(subject);
                any.iter().take_while(|_| !work::is_spent()).any(holds)
            }
            Predicate::All(all) => all.iter().all(|predicate| !work::is_spent() && predicate.holds(subject)),
            Predicate::Not(predicate) => !predicate.holds(subject) && !work::is_spent(),
        }
    }

    /// What it can't do without, if that is a text.
    pub(super) fn need(&self) -> Option<Need<'_>> {
        match self {
            Predicate::Single(input, Test::Text(test)) => {
                let (text, whole) = match test {
                    StringMatcher::Exact(text, false) => (&text[..], true),
                    StringMatcher::Prefix(text, false) => (&text[..], false),
                    test => (test.expression()?.literal_prefix(), false),
                };
                (whole || !text.is_empty()).then_some(Need { input, text, whole })
            }
            Predicate::All(all) => {
                let needs = || all.iter().filter_map(Predicate::need);
                needs().find(|need| need.whole).or_else(|| needs().next())
            }
            Predicate::Single(..) | Predicate::Any(_) | Predicate::Not(_) => None,
        }
    }
}

impl Test {
    fn passes(&self, input: &Input, subject: Subject<'_>) -> bool {
        match self {
            Test::Text(test) => input.with(subject, |text| text.is_some_and(|text| test.matches(text))),
            Test::Ip(ranges) => {
                input.ip(subject).is_some_and(|ip| ranges.iter().any(|range| range.contains(&ip)))
            }
            Test::Value(test, invert) => test.matches(input.value(subject)) != *invert,
            Test::Hash { modulo, threshold, seed } => input.with(subject, |text| {
                text.is_some_and(|text| xxh64(text, *seed).checked_rem(*modulo) >= Some(*threshold))
            }),
            Test::Cel(program) => match subject {
                Subject::Stream(stream) => program.holds(stream),
                Subject::Socket(_) => false,
            },
        }
    }
}
