//! Envoy's uri_template paths (extensions/path/match/uri_template, extensions/path/rewrite/uri_template).

use super::index::Captures;
use crate::regex::Regex;
use crate::route::TemplatePart;
use std::sync::Arc;

/// What a glob may stand for and a literal may hold: `pchar` of RFC 3986.
const PCHARS: &str = "a-zA-Z0-9-._~%!$&'()*+,;=:@";
/// Variables of one template, at most.
const MAX_VARIABLES: usize = 5;
/// Bytes of a variable's name, at most.
const MAX_NAME: usize = 16;

/// A path template: `/users/{id}/*`, `/media/{file=**}.mp4`.
#[derive(Debug)]
pub struct Template {
    regex: Regex,
    names: Box<[Arc<str>]>,
}

/// Reads a template from left to right and builds its regex.
struct Parser<'a> {
    rest: &'a str,
    regex: String,
    names: Vec<Arc<str>>,
    /// A `**` was there: no glob may follow.
    text_glob: bool,
}

impl Template {
    /// Compiles a `path_template`.
    ///
    /// # Errors
    /// A message when it is none: it must begin with `/`; `*` and `{name}` stand for a segment, `**` for
    /// all segments up to the end or a literal suffix; at most five variables with names of at most 16 bytes.
    pub fn parse(text: &str) -> Result<Template, String> {
        let mut parser = Parser { rest: text, regex: String::new(), names: Vec::new(), text_glob: false };
        parser.run().map_err(|reason| format!("path_template \"{text}\": {reason}"))?;
        let regex = Regex::full(&parser.regex).map_err(|e| e.to_string())?;
        Ok(Template { regex, names: parser.names.into() })
    }

    /// Whether the whole path fits.
    pub fn matches(&self, path: &[u8]) -> bool {
        self.regex.is_match(path)
    }

    /// Names of the variables, in order.
    pub fn names(&self) -> &[Arc<str>] {
        &self.names
    }

    pub(crate) fn regex(&self) -> &Regex {
        &self.regex
    }

    pub(super) fn capture(&self, path: &[u8], captures: &mut Captures) {
        if self.names.is_empty() {
            return;
        }
        let Some(groups) = self.regex.captures(path) else { return };
        for (name, value) in self.names.iter().zip(groups.iter().skip(1)) {
            captures.push((name.clone(), value.unwrap_or_default().to_vec()));
        }
    }
}

impl Parser<'_> {
    fn run(&mut self) -> Result<(), &'static str> {
        if !self.rest.starts_with('/') || !self.rest.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("must begin with / and hold visible ASCII characters alone");
        }
        while let Some(rest) = self.rest.strip_prefix('/') {
            self.rest = rest;
            self.regex.push('/');
            if rest.is_empty() {
                break;
            }
            match rest.as_bytes().first() {
                Some(b'*') => self.glob()?,
                Some(b'{') => self.variable()?,
                _ => self.literal()?,
            }
        }
        if self.rest.is_empty() {
            return Ok(());
        }
        // Text directly behind a glob or a variable is a suffix, and ends the template.
        self.literal()?;
        if self.rest.is_empty() { Ok(()) } else { Err("a suffix must be the end") }
    }

    fn glob(&mut self) -> Result<(), &'static str> {
        if self.text_glob {
            return Err("no glob may follow **");
        }
        if let Some(rest) = self.rest.strip_prefix("**") {
            self.rest = rest;
            self.text_glob = true;
            self.regex.push_str(&format!("[{PCHARS}/]*"));
        } else {
            self.rest = self.rest.strip_prefix('*').unwrap_or_default();
            self.regex.push_str(&format!("[{PCHARS}]+"));
        }
        Ok(())
    }

    fn literal(&mut self) -> Result<(), &'static str> {
        let end = self.rest.find('/').unwrap_or(self.rest.len());
        let (text, rest) = self.rest.split_at(end);
        if text.is_empty() || !text.bytes().all(is_pchar) {
            return Err("invalid literal");
        }
        self.regex.push_str(&regex_syntax::escape(text));
        self.rest = rest;
        Ok(())
    }

    fn variable(&mut self) -> Result<(), &'static str> {
        let (inside, rest) =
            self.rest.get(1..).and_then(|t| t.split_once('}')).ok_or("a variable is not closed")?;
        let (name, pattern) = match inside.split_once('=') {
            Some((_, "")) => return Err("a variable's pattern is empty"),
            Some((name, pattern)) => (name, pattern),
            None => (inside, "*"),
        };
        if !name.starts_with(|c: char| c.is_ascii_alphabetic())
            || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        {
            return Err("invalid variable name");
        }
        if name.len() > MAX_NAME {
            return Err("a variable's name is longer than 16 bytes");
        }
        if self.names.iter().any(|n| &**n == name) {
            return Err("a variable is named twice");
        }
        if self.names.len() == MAX_VARIABLES {
            return Err("more than five variables");
        }
        self.names.push(name.into());
        let mut inner = Parser {
            rest: pattern,
            regex: std::mem::take(&mut self.regex),
            names: Vec::new(),
            text_glob: self.text_glob,
        };
        inner.regex.push('(');
        loop {
            if inner.rest.starts_with('*') {
                inner.glob()?
            } else {
                inner.literal()?
            }
            match inner.rest.strip_prefix('/') {
                Some("") => return Err("a variable's pattern ends with /"),
                Some(next) => {
                    inner.regex.push('/');
                    inner.rest = next;
                }
                None if inner.rest.is_empty() => break,
                None => return Err("invalid pattern of a variable"),
            }
        }
        inner.regex.push(')');
        self.regex = inner.regex;
        self.text_glob = inner.text_glob;
        self.rest = rest;
        Ok(())
    }
}

fn is_pchar(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:@".contains(&b)
}

/// Splits a `path_template_rewrite` at its variables.
///
/// # Errors
/// A message when it does not begin with `/`, holds a byte that no path has, has an open brace, or names a
/// variable that `template` does not capture.
pub fn parse_rewrite(text: &str, template: &Template) -> Result<Box<[TemplatePart]>, String> {
    let fail = |reason: &str| format!("path_template_rewrite \"{text}\": {reason}");
    if !text.starts_with('/') {
        return Err(fail("must begin with /"));
    }
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (literal, after) = match rest.find('{') {
            Some(at) => (&rest[..at], rest.get(at + 1..)),
            None => (rest, None),
        };
        if !literal.bytes().all(|b| is_pchar(b) || b == b'/') {
            return Err(fail("invalid literal"));
        }
        if literal.contains("//") {
            return Err(fail("has an empty segment"));
        }
        if !literal.is_empty() {
            parts.push(TemplatePart::Text(literal.as_bytes().into()));
        }
        let Some(after) = after else { break };
        let (name, tail) = after.split_once('}').ok_or_else(|| fail("a variable is not closed"))?;
        let name = template
            .names
            .iter()
            .find(|n| &***n == name)
            .ok_or_else(|| fail(&format!("variable '{name}' is not captured by the path_template")))?;
        parts.push(TemplatePart::Capture(name.clone()));
        rest = tail;
    }
    Ok(parts.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn captures(template: &str, path: &str) -> Option<Vec<(String, String)>> {
        let template = Template::parse(template).unwrap();
        template.matches(path.as_bytes()).then(|| {
            let mut out = Vec::new();
            template.capture(path.as_bytes(), &mut out);
            out.into_iter().map(|(n, v)| (n.to_string(), String::from_utf8(v).unwrap())).collect()
        })
    }

    fn pairs(list: &[(&str, &str)]) -> Option<Vec<(String, String)>> {
        Some(list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect())
    }

    #[test]
    fn globs_and_variables_match_as_envoy_documents() {
        assert_eq!(captures("/api/users/{id}/**", "/api/users/42/"), pairs(&[("id", "42")]));
        assert_eq!(captures("/api/users/{id}/**", "/api/users/42"), None);
        assert_eq!(captures("/a/*/c", "/a/b/c"), pairs(&[]));
        assert_eq!(captures("/a/*/c", "/a/b/b/c"), None);
        assert_eq!(captures("/a/*/c", "/a//c"), None);
        assert_eq!(captures("/**.mpd", "/content/123/manifest.mpd"), pairs(&[]));
        assert_eq!(captures("/v/{f=**}.m4s", "/v/a/b.m4s"), pairs(&[("f", "a/b")]));
        assert_eq!(captures("/{a=x/*}/{b}", "/x/1/2"), pairs(&[("a", "x/1"), ("b", "2")]));
        assert_eq!(captures("/", "/"), pairs(&[]));
    }

    /// A rule that denies `/one/{x}` let `/one/a=b` pass.
    #[test]
    fn every_byte_of_a_segment_counts() {
        for byte in b"-._~%!$&'()*+,;=:@az09".iter().map(|b| char::from(*b)) {
            let path = format!("/one/a{byte}b");
            assert_eq!(captures("/one/{x}", &path), pairs(&[("x", &path[5..])]), "{byte}");
            assert_eq!(captures("/one/**", &path), pairs(&[]), "{byte}");
            assert_eq!(captures(&path, &path), pairs(&[]), "{byte}");
        }
        for good in ["/a*b", "/a=", "/***", "/*=", "/{a=b=c}", "/{a=b*}", "/{a=**}*", "/{a}*"] {
            assert!(Template::parse(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn bad_templates_are_refused() {
        for bad in [
            "",
            "a",
            "/{",
            "/{}",
            "/{1a}",
            "/{a}/{a}",
            "/**/x/*",
            "/{a=**}/{b}",
            "/{a}/{b}/{c}/{d}/{e}/{f}",
            "/{abcdefghijklmnopq}",
            "/*b/c",
            "/**{a}",
            "/*{b}",
            "/{a=*b}",
            "/{a=*=}",
            "/{a=}",
            "/{a=*/}",
            "/a b",
            "//a",
        ] {
            assert!(Template::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rewrites_know_the_variables_of_their_template() {
        let template = Template::parse("/a/{x}/{y}").unwrap();
        let parts = parse_rewrite("/n/{y}/{x}", &template).unwrap();
        assert_eq!(parts.len(), 4);
        assert_eq!(parts[1], TemplatePart::Capture("y".into()));
        for bad in ["x", "/{z}", "/{x", "/a b", "/a//b"] {
            assert!(parse_rewrite(bad, &template).is_err(), "{bad}");
        }
    }
}
