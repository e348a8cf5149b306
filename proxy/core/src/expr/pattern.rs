//! Patterns of `~~` and `~*`: linear-time where they can be, backtracking with a bound where PCRE needs it.

use super::EvalError;
use crate::regex::{Backtracking, Late, Regex};

/// A search pattern in PCRE's syntax.
#[derive(Debug)]
pub(super) enum Pattern {
    Linear(Regex),
    /// Look-around and back references. Works on text alone.
    Backtracking(Box<Backtracking>),
}

impl Pattern {
    pub(super) fn new(source: &str, ignore_case: bool) -> Result<Pattern, String> {
        let flags = if ignore_case { "(?i)" } else { "" };
        let source = format!("{flags}{source}");
        match Regex::search(&source) {
            Ok(regex) => Ok(Pattern::Linear(regex)),
            Err(linear) => Backtracking::new(&source)
                .map(|pattern| Pattern::Backtracking(Box::new(pattern)))
                .map_err(|_| linear.to_string()),
        }
    }

    /// As it was written, behind `(?i)` if case counts for nothing.
    pub(super) fn source(&self) -> &str {
        match self {
            Pattern::Linear(regex) => regex.source(),
            Pattern::Backtracking(pattern) => pattern.source(),
        }
    }

    pub(super) fn late(&self) -> &dyn Late {
        match self {
            Pattern::Linear(regex) => regex,
            Pattern::Backtracking(pattern) => &**pattern,
        }
    }

    pub(super) fn is_match(&self, text: &[u8]) -> Result<bool, EvalError> {
        match self {
            Pattern::Linear(regex) => Ok(regex.is_match(text)),
            Pattern::Backtracking(pattern) => pattern
                .is_match(&String::from_utf8_lossy(text))
                .map_err(|e| EvalError(format!("failed to match '{}': {e}", pattern.source()))),
        }
    }
}
