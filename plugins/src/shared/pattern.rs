//! Patterns in PCRE's syntax, as plugins search and replace with them (`ngx.re`).

use sixfold_core::regex::{Backtracking, MatchTime};
use std::ops::Range;

/// Matches of a backtracking pattern that are replaced in one text: each is a search with a budget of its own.
const MAX_SEARCHES: usize = 1024;

/// Bytes a compiled pattern may take.
const SIZE_LIMIT: usize = 2 << 20;

/// A search pattern: linear-time where it can be, backtracking with a bound where PCRE needs it.
#[derive(Debug)]
pub(crate) enum Pattern {
    /// With the group of [`END`], if it has that.
    Linear(regex::bytes::Regex, Option<usize>),
    /// Look-around and back references. Works on text alone.
    Backtracking(Box<Backtracking>),
}

/// Where a match and its groups lie; group 0 is the whole match.
pub(crate) type Groups = Vec<Option<Range<usize>>>;

/// What `ngx.re` takes.
const OPTIONS: &str = "adDijJmosuUx";

/// A group that no pattern has.
const END: &str = "end_of_the_text";

/// To PCRE a `$` is also before a line's end that ends the text. Where a pattern ends with one, a group of its own takes that.
fn end_of_text(source: &str, flags: &str) -> String {
    let before = source.strip_suffix('$').filter(|_| !flags.contains(['m', 'x']));
    let is_escaped = |text: &str| text.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1;
    match before.filter(|before| !is_escaped(before)) {
        Some(before) => format!("{before}(?P<{END}>\\n?)\\z"),
        None => source.to_owned(),
    }
}

impl Pattern {
    /// Compiles a pattern with `ngx.re`'s options; of those `i`, `m`, `s`, `x` change what matches.
    ///
    /// # Errors
    /// Bad syntax, or an option that there is not.
    pub(crate) fn new(source: &str, options: &str) -> Result<Pattern, String> {
        if let Some(unknown) = options.chars().find(|option| !OPTIONS.contains(*option)) {
            return Err(format!("unknown flag \"{unknown}\" (flags \"{options}\")"));
        }
        let flags: String = options.chars().filter(|c| "imsx".contains(*c)).collect();
        let source = if flags.is_empty() { source.to_owned() } else { format!("(?{flags}){source}") };
        let source = end_of_text(&source, &flags);
        let linear = regex::bytes::RegexBuilder::new(&source).unicode(false).size_limit(SIZE_LIMIT).build();
        match linear {
            Ok(regex) => {
                let end = regex.capture_names().position(|name| name == Some(END));
                Ok(Pattern::Linear(regex, end))
            }
            Err(error) => Backtracking::new(&source)
                .map(|pattern| Pattern::Backtracking(Box::new(pattern)))
                .map_err(|_| error.to_string().lines().last().unwrap_or_default().trim().to_owned()),
        }
    }

    /// The first match at or after `from`.
    ///
    /// # Errors
    /// A backtracking pattern that takes too many steps, or a text that is too long for one.
    pub(crate) fn find(&self, text: &[u8], from: usize) -> Result<Option<Groups>, String> {
        self.find_within(text, from, MatchTime::Worker)
    }

    /// Whether there is a match.
    ///
    /// # Errors
    /// As [`Pattern::find`].
    pub(crate) fn is_match(&self, text: &[u8]) -> Result<bool, String> {
        match self {
            Pattern::Linear(regex, _) => Ok(regex.is_match(text)),
            Pattern::Backtracking(_) => self.find(text, 0).map(|found| found.is_some()),
        }
    }

    /// Whether the pattern takes time in proportion to the text.
    pub(crate) fn is_linear(&self) -> bool {
        matches!(self, Pattern::Linear(..))
    }

    fn find_within(&self, text: &[u8], from: usize, time: MatchTime) -> Result<Option<Groups>, String> {
        match self {
            Pattern::Linear(regex, end) => {
                let found = (from <= text.len()).then(|| regex.captures_at(text, from)).flatten();
                Ok(found.map(|captures| {
                    let mut groups: Groups = captures.iter().map(|g| g.map(|m| m.range())).collect();
                    // The line's end is not part of the match.
                    let end = end.and_then(|at| (at < groups.len()).then(|| groups.remove(at))).flatten();
                    if let (Some(end), Some(Some(whole))) = (end, groups.first_mut()) {
                        whole.end = end.start;
                    }
                    groups
                }))
            }
            Pattern::Backtracking(pattern) => {
                let Ok(text) = std::str::from_utf8(text) else { return Ok(None) };
                pattern.captures_at(text, from, time).map_err(|e| e.to_string())
            }
        }
    }

    /// The text with its first match, or all of them, replaced; `None` when nothing matched.
    ///
    /// # Errors
    /// As [`Pattern::find`].
    pub(crate) fn replace(
        &self,
        text: &[u8],
        with: &Replacement,
        all: bool,
    ) -> Result<Option<Vec<u8>>, String> {
        self.replace_within(text, with, all, MatchTime::Worker)
    }

    /// [`Pattern::replace`] with more or less time for a pattern that backtracks.
    ///
    /// # Errors
    /// As [`Pattern::find`].
    pub(crate) fn replace_within(
        &self,
        text: &[u8],
        with: &Replacement,
        all: bool,
        time: MatchTime,
    ) -> Result<Option<Vec<u8>>, String> {
        let (mut out, mut at, mut from) = (Vec::new(), 0, 0);
        let mut searches = 0;
        while let Some(groups) = self.find_within(text, from, time)? {
            searches += 1;
            if searches > MAX_SEARCHES && matches!(self, Pattern::Backtracking(_)) {
                return Err("the pattern matches too often".to_owned());
            }
            let Some(whole) = groups.first().cloned().flatten() else { break };
            out.extend_from_slice(text.get(at..whole.start).unwrap_or_default());
            with.expand(text, &groups, &mut out);
            at = whole.end;
            from = if whole.is_empty() { whole.end + 1 } else { whole.end };
            if !all {
                from = text.len() + 1;
            }
            if from > text.len() {
                break;
            }
        }
        if at == 0 && out.is_empty() && from == 0 {
            return Ok(None);
        }
        out.extend_from_slice(text.get(at..).unwrap_or_default());
        Ok(Some(out))
    }
}

/// A replacement: `$1` and `${1}` are groups, `$$` is a dollar sign.
#[derive(Debug)]
pub(crate) struct Replacement {
    parts: Vec<Part>,
}

#[derive(Debug)]
enum Part {
    Text(Vec<u8>),
    Group(usize),
}

impl Replacement {
    /// Reads a replacement as `ngx.re` does.
    ///
    /// # Errors
    /// A `$` before anything but a group or another one.
    pub(crate) fn checked(text: &str) -> Result<Replacement, String> {
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            rest = rest.get(at..).unwrap_or_default();
            rest = match (rest.strip_prefix("$$"), group(rest)) {
                (Some(tail), _) | (None, Some((_, tail))) => tail,
                (None, None) => return Err(format!("invalid capturing variable name found in \"{text}\"")),
            };
        }
        Ok(Replacement::new(text))
    }

    /// Reads a replacement; a `$` that names no group stands for itself.
    pub(crate) fn new(text: &str) -> Replacement {
        let mut parts = Vec::new();
        let mut plain = Vec::new();
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            if let Some((group, tail)) = group(rest) {
                if !plain.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut plain)));
                }
                parts.push(Part::Group(group));
                rest = tail;
                continue;
            }
            rest =
                rest.strip_prefix("$$").map_or(rest.get(first.len_utf8()..).unwrap_or_default(), |tail| tail);
            plain.extend_from_slice(first.encode_utf8(&mut [0; 4]).as_bytes());
        }
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Replacement { parts }
    }

    fn expand(&self, text: &[u8], groups: &Groups, out: &mut Vec<u8>) {
        for part in &self.parts {
            match part {
                Part::Text(plain) => out.extend_from_slice(plain),
                Part::Group(n) => {
                    let range = groups.get(*n).cloned().flatten();
                    out.extend_from_slice(range.and_then(|r| text.get(r)).unwrap_or_default());
                }
            }
        }
    }
}

/// The group that `text` begins with, and what follows.
fn group(text: &str) -> Option<(usize, &str)> {
    let text = text.strip_prefix('$')?;
    let (digits, rest) = match text.strip_prefix('{') {
        Some(braced) => braced.split_once('}')?,
        None => text.split_at(text.bytes().take_while(u8::is_ascii_digit).count()),
    };
    Some((digits.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn replace(pattern: &str, options: &str, with: &str, all: bool, text: &str) -> Option<String> {
        let pattern = Pattern::new(pattern, options).unwrap();
        let out = pattern.replace(text.as_bytes(), &Replacement::new(with), all).unwrap();
        out.map(|o| String::from_utf8(o).unwrap())
    }

    #[test]
    fn matches_are_replaced() {
        assert_eq!(replace("^/a/(.*)/(.*)", "jo", "/$2_${1}$$", false, "/a/b/c").as_deref(), Some("/c_b$"));
        assert_eq!(replace("o", "", "0", false, "foo boo").as_deref(), Some("f0o boo"));
        assert_eq!(replace("O", "ijo", "0", true, "foo boo").as_deref(), Some("f00 b00"));
        assert_eq!(replace("x", "", "y", true, "foo"), None);
        assert_eq!(replace("(?<=f)o", "", "_", true, "foo").as_deref(), Some("f_o"));
        assert_eq!(replace("", "", "-", true, "ab").as_deref(), Some("-a-b-"));
        assert_eq!(replace("(a)|b", "", "[$1]", true, "ab").as_deref(), Some("[a][]"));
        assert!(Pattern::new("(", "").is_err());
        assert_eq!(Pattern::new("a", "ih").unwrap_err(), "unknown flag \"h\" (flags \"ih\")");
    }

    /// As in PCRE.
    #[test]
    fn the_end_of_a_text_is_before_its_last_line_end_too() {
        assert_eq!(replace(r"\w\S+$", "jo", "*", false, "hello world\n").as_deref(), Some("hello *\n"));
        assert_eq!(replace("b$", "", "*", false, "ab").as_deref(), Some("a*"));
        assert_eq!(replace("b$", "", "*", true, "ab\nb\n\n"), None);
        assert_eq!(replace("(x)|(b)$", "", "[$2$1]", true, "xb\n").as_deref(), Some("[x][b]\n"));
        assert_eq!(replace(r"\s*$", "", "*", false, "b\n").as_deref(), Some("b*"));
        assert_eq!(replace(r"b\$", "", "*", false, "b$").as_deref(), Some("*"));
        assert_eq!(replace("b$", "m", "*", true, "ab\nb\n").as_deref(), Some("a*\n*\n"));
        assert!(Pattern::new("b$", "").unwrap().is_match(b"b\n").unwrap());
    }

    #[test]
    fn replacements_are_checked_as_nginx_checks_them() {
        for good in ["/$1", "/${12}x$$", "", "a"] {
            assert!(Replacement::checked(good).is_ok(), "{good}");
        }
        for bad in ["/$`1", "$", "/$uri", "${a}", "${1"] {
            assert!(Replacement::checked(bad).unwrap_err().contains("invalid capturing variable name"));
        }
    }

    /// A filter with a look-ahead held its worker for more than a minute over a body of 5 MB.
    #[test]
    fn a_backtracking_pattern_does_not_begin_on_a_long_text() {
        let pattern = Pattern::new("(?=.)(a|aa|aaa)+b$", "").unwrap();
        assert!(pattern.replace(&vec![b'a'; 5 << 20], &Replacement::new(""), true).is_err());
        assert_eq!(replace("(?=.)(a|aa|aaa)+b$", "", "x", true, "aab").as_deref(), Some("x"));
    }
}
