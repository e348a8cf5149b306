//! Patterns with look-around and back references, within a budget.
//!
//! A step back may run a linear part of the pattern over the whole rest of the text, so what bounds the time is steps
//! times length. A pattern is compiled once for each class of length with the steps that it may take there.

use super::{Late, work};
use std::ops::Range;
use std::sync::OnceLock;

/// Bytes a compiled pattern may take.
const SIZE_LIMIT: usize = 2 << 20;

/// The longest text up to which a pattern may take these steps back, about 5 ms at worst. Where a match may begin
/// anywhere, each byte of the text takes a step.
const ANYWHERE: [(usize, usize); 3] = [(64, 65_536), (512, 8_192), (2_048, 4_096)];

/// A pattern that begins with `^` is tried at one place alone, so that it can look at longer texts.
const AT_THE_START: [(usize, usize); 4] = [(64, 65_536), (512, 8_192), (2_048, 4_096), (65_536, 64)];

/// Beside the workers: a second at worst.
const PATIENT: [(usize, usize); 1] = [(32 << 10, 65_536)];

/// Steps that there is a compiled form for.
const STEPS: [usize; 4] = [65_536, 8_192, 4_096, 64];

/// A pattern that backtracks, compiled when loaded; its forms for longer texts when first needed.
pub struct Backtracking {
    source: Box<str>,
    /// Whether it can match at the start of a text alone.
    at_start: bool,
    forms: [OnceLock<Option<Box<fancy_regex::Regex>>>; STEPS.len()],
}

/// How long one may wait for a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatchTime {
    /// On a worker, which others wait for: 5 ms, and texts of 2 KiB; 64 KiB if the pattern begins with `^`.
    Worker,
    /// Beside the workers: a second, and texts of 32 KiB.
    Offloaded,
}

/// Why a pattern gave no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Exceeded {
    /// The text is longer than the pattern may look at.
    #[error("the text is too long for a pattern that backtracks")]
    Length,
    /// It took too many steps.
    #[error("the pattern takes too many steps")]
    Steps,
}

impl Backtracking {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// Bad syntax, or too large a program.
    pub fn new(source: &str) -> Result<Backtracking, Box<fancy_regex::Error>> {
        let form = compile(source, STEPS[0])?;
        let pattern = Backtracking {
            source: source.into(),
            at_start: matches_at_start_alone(source),
            forms: Default::default(),
        };
        // It was empty.
        let _ = pattern.forms[0].set(Some(Box::new(form)));
        Ok(pattern)
    }

    /// The pattern as configured.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the pattern matches anywhere in the text.
    ///
    /// # Errors
    /// [`Exceeded`] when that can't be told within the budget.
    pub fn is_match(&self, text: &str) -> Result<bool, Exceeded> {
        self.search(text, 0, MatchTime::Worker, |form, input| form.is_match_input(input))
    }

    /// Where the first match at or after `from` and its groups lie; group 0 is the whole match.
    ///
    /// # Errors
    /// [`Exceeded`] when that can't be told within the budget.
    pub fn captures_at(
        &self,
        text: &str,
        from: usize,
        time: MatchTime,
    ) -> Result<Option<Vec<Option<Range<usize>>>>, Exceeded> {
        self.search(text, from, time, |form, input| {
            let found = form.captures_input(input)?;
            Ok(found.map(|groups| groups.iter().map(|group| group.map(|m| m.range())).collect()))
        })
    }

    fn search<'t, T>(
        &self,
        text: &'t str,
        from: usize,
        time: MatchTime,
        search: impl FnOnce(
            &fancy_regex::Regex,
            fancy_regex::RegexInput<'t, str>,
        ) -> Result<T, fancy_regex::Error>,
    ) -> Result<T, Exceeded> {
        work::charge_backtracking(text.as_bytes());
        let classes = match time {
            MatchTime::Worker => self.on_workers(),
            MatchTime::Offloaded => &PATIENT[..],
        };
        let steps = classes.iter().find(|(length, _)| text.len() <= *length).ok_or(Exceeded::Length)?.1;
        let form = self.form(steps).ok_or(Exceeded::Steps)?;
        let input = fancy_regex::RegexInput::new(text).from_pos(from).anchored(self.at_start);
        search(form, input).map_err(|_| Exceeded::Steps)
    }

    /// The classes of length on a worker.
    fn on_workers(&self) -> &'static [(usize, usize)] {
        if self.at_start { &AT_THE_START } else { &ANYWHERE }
    }

    fn has(&self, steps: usize) -> bool {
        STEPS.iter().zip(&self.forms).any(|(of, form)| *of == steps && form.get().is_some())
    }

    fn form(&self, steps: usize) -> Option<&fancy_regex::Regex> {
        let form = self.forms.get(STEPS.iter().position(|of| *of == steps)?)?;
        let build = || {
            work::charge_compiling_backtracking();
            compile(&self.source, steps).ok().map(Box::new)
        };
        form.get_or_init(build).as_deref()
    }
}

/// A text needs one form, that of its length.
impl Late for Backtracking {
    fn cost(&self) -> usize {
        let is_ready = self.on_workers().iter().all(|(_, steps)| self.has(*steps));
        if is_ready { 0 } else { work::COMPILING_BACKTRACKING }
    }

    fn prepare(&self) {
        for (_, steps) in self.on_workers() {
            self.form(*steps);
        }
    }
}

impl std::fmt::Debug for Backtracking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "/{}/", self.source)
    }
}

fn compile(source: &str, steps: usize) -> Result<fancy_regex::Regex, Box<fancy_regex::Error>> {
    let mut builder = fancy_regex::RegexBuilder::new(source);
    Ok(builder.backtrack_limit(steps).delegate_size_limit(SIZE_LIMIT).build()?)
}

/// Whether the pattern begins with `^` (behind flags, of which none makes it the start of a line) and has no
/// alternative to that.
fn matches_at_start_alone(source: &str) -> bool {
    let source = match source.strip_prefix("(?").and_then(|rest| rest.split_once(')')) {
        Some((flags, rest)) if flags.bytes().all(|flag| matches!(flag, b'i' | b's' | b'x')) => rest,
        _ => source,
    };
    if !source.starts_with('^') || source.contains("(?m") || source.contains("(?-") {
        return false;
    }
    let (mut depth, mut class, mut escaped) = (0usize, false, false);
    for byte in source.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b']' => class = false,
            _ if class => {}
            b'[' => class = true,
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            b'|' if depth == 0 => return false,
            _ => {}
        }
    }
    // An optional `^` may match elsewhere.
    !matches!(source.as_bytes().get(1), Some(b'?' | b'*' | b'{'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn look_around_and_back_references_match() {
        let pattern = Backtracking::new(r"(?<=f)(o)\1(?!x)").unwrap();
        assert_eq!((pattern.is_match("a foo"), pattern.is_match("foox")), (Ok(true), Ok(false)));
        let groups = pattern.captures_at("foo foo", 3, MatchTime::Worker).unwrap().unwrap();
        assert_eq!(groups, [Some(5..7), Some(5..6)]);
        assert!(Backtracking::new("(").is_err());
    }

    /// 60 KB of a header held a worker for 3 s: the steps were bounded and what a step costs was not.
    #[test]
    fn what_would_take_long_is_not_begun() {
        let bomb = Backtracking::new("(?=.)(a|aa|aaa)+b$").unwrap();
        assert_eq!(bomb.is_match(&"a".repeat(60_000)), Err(Exceeded::Length));
        assert_eq!(bomb.captures_at(&"a".repeat(33_000), 0, MatchTime::Offloaded), Err(Exceeded::Length));
        let bomb = Backtracking::new(r"^(?=.)(?:(a+)+\1)+b").unwrap();
        assert_eq!(bomb.is_match(&"a".repeat(2_000)), Err(Exceeded::Steps));
        assert_eq!(bomb.is_match(&"a".repeat(65_537)), Err(Exceeded::Length));
    }

    #[test]
    fn texts_within_the_bound_are_searched_whole() {
        let anywhere = Backtracking::new("foo(?!bar)").unwrap();
        let text = format!("{}foo", "foobar".repeat(340));
        assert_eq!(anywhere.is_match(&text), Ok(true));
        assert_eq!(anywhere.is_match(&text[..2_040]), Ok(false));
        let start = Backtracking::new("^(?!.*admin)/").unwrap();
        let long = format!("/{}", "a".repeat(60_000));
        assert_eq!((start.is_match(&long), start.is_match(&format!("{long}admin"))), (Ok(true), Ok(false)));
    }

    #[test]
    fn only_what_must_match_at_the_start_is_tried_there_alone() {
        for source in ["^a(?=b)", "(?i)^a(b|c)", r"^a\|b", "^[|]", "^(?!x|y)"] {
            assert!(matches_at_start_alone(source), "{source}");
        }
        for source in ["a^", "^a|b", "(?m)^a", "^?a", "^a(?m)|b", "(^a)", "^(?m:^)", "x"] {
            assert!(!matches_at_start_alone(source), "{source}");
        }
    }
}
