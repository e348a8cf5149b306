//! Regular expressions that are checked when loaded and compiled when first needed.
//!
//! Five thousand compiled regexes cost 40 to 90 MB; most tables use a few of theirs. So loading checks the
//! syntax and the limits, and the automaton is built by the first request that gets as far as needing it.

mod backtracking;
mod reduce;
pub(crate) mod work;

pub use backtracking::{Backtracking, Exceeded, MatchTime};

use reduce::Shape;
use std::sync::OnceLock;

/// Bytes a compiled expression may take: a bound on what configuration can make us allocate.
const SIZE_LIMIT: usize = 2 << 20;

/// States of an expression that a worker compiles when it first needs it, which takes it a fraction of a millisecond (15
/// us for a usual route). What has more is compiled when it is loaded, and kept.
const LAZY_STATES: u8 = 100;

/// A regular expression with RE2's semantics: linear time, leftmost-first, ASCII classes.
pub struct Regex {
    source: Box<str>,
    full: bool,
    /// About how many states its automaton has; [`LAZY_STATES`] at most while it is not compiled.
    states: u8,
    shape: Shape,
    compiled: OnceLock<Option<Box<regex::bytes::Regex>>>,
}

/// Why an expression was refused.
#[derive(Debug, Clone, thiserror::Error)]
#[error("invalid regex '{regex}': {reason}")]
pub struct InvalidRegex {
    /// The expression.
    pub regex: String,
    /// What is wrong with it.
    pub reason: String,
}

/// What is compiled when it is first needed.
pub(crate) trait Late {
    /// What the request that needs it first would be charged for compiling it, in bytes that it may scan.
    fn cost(&self) -> usize;

    /// Compiles it now instead.
    fn prepare(&self);
}

impl Late for Regex {
    fn cost(&self) -> usize {
        if self.is_reduced() || self.compiled.get().is_some() {
            0
        } else {
            work::cost_of_compiling(self.states.into())
        }
    }

    fn prepare(&self) {
        if !self.is_reduced() {
            self.compiled();
        }
    }
}

impl Regex {
    /// An expression that must match the whole text (Envoy's `safe_regex`).
    ///
    /// # Errors
    /// [`InvalidRegex`] for bad syntax or too large an automaton.
    pub fn full(source: &str) -> Result<Regex, InvalidRegex> {
        Regex::checked(source, true)
    }

    /// An expression that may match anywhere in the text.
    ///
    /// # Errors
    /// [`InvalidRegex`] for bad syntax or too large an automaton.
    pub fn search(source: &str) -> Result<Regex, InvalidRegex> {
        Regex::checked(source, false)
    }

    fn checked(source: &str, full: bool) -> Result<Regex, InvalidRegex> {
        let refuse = |reason: String| InvalidRegex { regex: source.to_owned(), reason };
        let hir = regex_syntax::ParserBuilder::new()
            .unicode(false)
            .utf8(false)
            .nest_limit(100)
            .build()
            .parse(source)
            .map_err(|e| refuse(one_line(&e.to_string())))?;
        let shape = Shape::of(&hir, full);
        let states = u8::try_from(states(&hir)).unwrap_or(u8::MAX);
        let mut regex = Regex { source: source.into(), full, states, shape, compiled: OnceLock::new() };
        if states > LAZY_STATES {
            let built = regex.build().map_err(|e| refuse(one_line(&e.to_string())))?;
            regex.compiled = OnceLock::from(Some(Box::new(built)));
        }
        Ok(regex)
    }

    fn build(&self) -> Result<regex::bytes::Regex, regex::Error> {
        let anchored;
        let pattern = if self.full {
            anchored = format!(r"\A(?:{})\z", self.source);
            &anchored
        } else {
            &*self.source
        };
        regex::bytes::RegexBuilder::new(pattern)
            .unicode(false)
            .size_limit(SIZE_LIMIT)
            .dfa_size_limit(SIZE_LIMIT / 8)
            .build()
    }

    fn compiled(&self) -> Option<&regex::bytes::Regex> {
        let build = || {
            work::charge_compiling(self.states.into());
            self.build().ok().map(Box::new)
        };
        self.compiled.get_or_init(build).as_deref()
    }

    /// Whether it is matched without an automaton.
    fn is_reduced(&self) -> bool {
        self.shape.steps.is_some() || self.shape.is_within
    }

    /// Whether the text matches: the whole of it for [`Regex::full`].
    pub fn is_match(&self, text: &[u8]) -> bool {
        work::charge_literal(text);
        if let Some(steps) = &self.shape.steps {
            return reduce::is_match(steps, text);
        }
        let required = &self.shape.required;
        if !required.is_empty() && memchr::memmem::find(text, required).is_none() {
            return false;
        }
        if self.shape.is_within {
            return memchr::memchr(b'\n', text).is_none();
        }
        work::charge_automaton(text);
        self.compiled().is_some_and(|r| r.is_match(text))
    }

    /// Where the first match lies.
    pub fn find(&self, text: &[u8]) -> Option<std::ops::Range<usize>> {
        self.compiled()?.find(text).map(|m| m.range())
    }

    /// Replaces every match; the replacement names groups as RE2 does, `\0` to `\9`, and `\\`.
    /// `None` when nothing matched.
    pub fn replace_all(&self, text: &[u8], rewrite: &Rewrite) -> Option<Vec<u8>> {
        let regex = self.compiled()?;
        let mut out = Vec::with_capacity(text.len() + 16);
        let mut at = 0;
        for groups in regex.captures_iter(text) {
            let whole = groups.get(0)?;
            out.extend_from_slice(&text[at..whole.start()]);
            rewrite.expand(&groups, &mut out);
            at = whole.end();
        }
        if at == 0 && !regex.is_match(text) {
            return None;
        }
        out.extend_from_slice(&text[at..]);
        Some(out)
    }

    /// Values of the groups of the first match, group 0 first.
    pub fn captures<'t>(&self, text: &'t [u8]) -> Option<Vec<Option<&'t [u8]>>> {
        let groups = self.compiled()?.captures(text)?;
        Some(groups.iter().map(|g| g.map(|m| m.as_bytes())).collect())
    }

    /// What every text that [`Regex::full`] matches begins with.
    pub(crate) fn literal_prefix(&self) -> &[u8] {
        &self.shape.prefix
    }

    /// What every text that matches holds somewhere; may be empty although there is such a literal.
    pub(crate) fn required_literal(&self) -> &[u8] {
        &self.shape.required
    }

    /// The expression as configured.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether its automaton is there.
    #[cfg(test)]
    pub(crate) fn is_compiled(&self) -> bool {
        self.compiled.get().is_some()
    }

    /// Number of capture groups, group 0 not counted.
    pub fn groups(&self) -> usize {
        self.compiled().map_or(0, |r| r.captures_len() - 1)
    }
}

impl std::fmt::Debug for Regex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "/{}/", self.source)
    }
}

fn one_line(text: &str) -> String {
    text.lines().last().unwrap_or(text).trim_start_matches("error: ").to_owned()
}

/// About how many states the automaton has: each repetition that is counted is written out.
fn states(hir: &regex_syntax::hir::Hir) -> usize {
    use regex_syntax::hir::HirKind;
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) | HirKind::Class(_) => 1,
        HirKind::Literal(literal) => literal.0.len(),
        HirKind::Repetition(r) => {
            states(&r.sub).saturating_mul(r.max.unwrap_or(r.min.saturating_add(1)).max(1) as usize)
        }
        HirKind::Capture(c) => states(&c.sub),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => {
            parts.iter().map(states).fold(0, usize::saturating_add)
        }
    }
}

/// A replacement in RE2's syntax, split when loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewrite {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(Vec<u8>),
    Group(usize),
}

impl Rewrite {
    /// Splits `text` at `\0` to `\9`.
    ///
    /// # Errors
    /// A message when a backslash is followed by anything else or a group is beyond `groups`.
    pub fn new(text: &str, groups: usize) -> Result<Rewrite, String> {
        let mut parts = Vec::new();
        let mut literal = Vec::new();
        let mut bytes = text.bytes();
        while let Some(b) = bytes.next() {
            if b != b'\\' {
                literal.push(b);
                continue;
            }
            match bytes.next() {
                Some(b'\\') => literal.push(b'\\'),
                Some(d @ b'0'..=b'9') if usize::from(d - b'0') <= groups => {
                    if !literal.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut literal)));
                    }
                    parts.push(Part::Group(usize::from(d - b'0')));
                }
                Some(d @ b'0'..=b'9') => {
                    return Err(format!("substitution refers to group {} of {groups}", d - b'0'));
                }
                _ => return Err(format!("substitution '{text}' has a stray backslash")),
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Text(literal));
        }
        Ok(Rewrite { parts })
    }

    fn expand(&self, groups: &regex::bytes::Captures<'_>, out: &mut Vec<u8>) {
        for part in &self.parts {
            match part {
                Part::Text(text) => out.extend_from_slice(text),
                Part::Group(i) => out.extend_from_slice(groups.get(*i).map_or(b"", |m| m.as_bytes())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn full_needs_the_whole_text_alternations_included() {
        let r = Regex::full("/a|/ab").unwrap();
        assert!(r.is_match(b"/ab") && r.is_match(b"/a") && !r.is_match(b"/abc"));
        assert!(Regex::search("b+").unwrap().is_match(b"abbc"));
    }

    #[test]
    fn bombs_and_bad_syntax_are_refused_when_loaded() {
        for bad in ["(", "(a{1000}){1000}", "[z-a]", "(?=x)", r"\1"] {
            assert!(Regex::full(bad).is_err(), "{bad}");
        }
    }

    /// The first request that met it compiled it, for milliseconds.
    #[test]
    fn what_takes_long_to_compile_is_compiled_when_loaded() {
        let many_classes = "[a-z][0-9]".repeat(99);
        for large in ["([a-z]{1,90}[0-9]){50}", &many_classes] {
            assert!(Regex::full(large).unwrap().is_compiled(), "{large}");
        }
        for small in ["/svc/(a|b)[0-9]+", "/v[0-9]{4}/[a-z]{1,32}"] {
            let regex = Regex::full(small).unwrap();
            assert!(!regex.is_compiled(), "{small}: thousands of them take too much memory");
            assert!(regex.is_match(b"/svc/a1") || regex.is_match(b"/v2024/x"));
        }
    }

    #[test]
    fn reduced_expressions_match_exactly_what_the_automaton_does() {
        let sources = [
            "/a",
            "/svc/3000/.*",
            "/a/[^/]+/b",
            r"/a/\d+/b",
            r"/a/\d+(/.*)?",
            "^/a$",
            "/a(/.*)?",
            "/a.+",
            "/[ab]*c",
            "/[ab]*b",
            "/a?b",
            "/a?a",
            "/(a|b)c",
            "/a|/b",
            "(?i)/aB",
            "(?s)/a.*",
            "/a{2,3}b",
            "/a{2,3}a",
            "/.*/b",
            "/a(b)?",
            "/a(b.*)?$",
            "/a([ab]+)/?",
            "/(a)(b)*",
            "",
            "/a/*",
            "(/a)?",
            r"/a\n?",
            "/[^/]*/[^/]*",
            ".*/a.*",
            "^.*ab.*$",
            ".*a\\n.*",
            "(?s).*a.*",
            ".*a.+",
        ];
        let mut random = fastrand::Rng::with_seed(3);
        let mut reduced = 0;
        for source in sources {
            let regex = Regex::full(source).unwrap();
            reduced += usize::from(regex.is_reduced());
            for _ in 0..3000 {
                let len = random.usize(0..9);
                let text: Vec<u8> = (0..len).map(|_| b"/ab1Bc\n"[random.usize(0..7)]).collect();
                let want = regex.compiled().unwrap().is_match(&text);
                assert_eq!(regex.is_match(&text), want, "{source} on {:?}", String::from_utf8_lossy(&text));
                assert!(!want || text.starts_with(regex.literal_prefix()), "{source}");
            }
        }
        assert!(reduced >= 18, "{reduced}");
        assert!(Regex::full("/svc/3000/.*").unwrap().is_reduced());
        assert!(Regex::full(".*/ns/shop/.*").unwrap().is_reduced());
    }

    #[test]
    fn literals_are_found_in_what_is_not_reduced() {
        let regex = Regex::full("/svc/(a|b)/needle/.*x").unwrap();
        assert!(regex.shape.steps.is_none());
        assert_eq!((regex.literal_prefix(), regex.required_literal()), (&b"/svc/"[..], &b"/needle/"[..]));
        assert_eq!(Regex::full("/ab.*|/ac.*").unwrap().literal_prefix(), b"/a");
        assert_eq!(Regex::search("/a").unwrap().literal_prefix(), b"");
    }

    #[test]
    fn rewrites_use_groups() {
        let r = Regex::search("^/service/([^/]+)(/.*)$").unwrap();
        let w = Rewrite::new(r"\2/instance/\1", r.groups()).unwrap();
        assert_eq!(r.replace_all(b"/service/foo/v1/api", &w).unwrap(), b"/v1/api/instance/foo");
        assert_eq!(r.replace_all(b"/other", &w), None);
        assert!(Rewrite::new(r"\3", 2).is_err());
        assert!(Rewrite::new(r"\x", 2).is_err());
    }
}
