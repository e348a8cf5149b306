//! Which method a request is for (grpc_transcoding/path_matcher.h): a trie of the segments of templates, and what the
//! path and the query bind to fields.

use super::template::{End, Template, Variable};
use std::collections::{HashMap, HashSet};

/// What of a path is decoded where it becomes the value of a variable of several segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unescape {
    /// All but reserved characters (RFC 6570).
    NotReserved,
    /// All but slashes.
    NotSlash,
    All,
}

/// A field and the text that it is to have.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Binding {
    pub(super) field: Vec<String>,
    pub(super) value: Vec<u8>,
}

/// Rules by method and path.
pub(super) struct Paths<R> {
    root: Node<R>,
    verbs: HashSet<Vec<u8>>,
    pub(super) options: Options,
}

/// How paths and queries are read.
#[derive(Debug)]
pub(super) struct Options {
    pub(super) unescape: Unescape,
    /// `+` in a query is a space.
    pub(super) plus_is_space: bool,
    /// What looks like a verb is one, though no template has it.
    pub(super) any_verb: bool,
    /// Parameters of the query that bind nothing.
    pub(super) ignored: HashSet<String>,
}

struct Node<R> {
    children: HashMap<Vec<u8>, Node<R>>,
    /// By verb and method; `None` where several have it.
    rules: Vec<ByMethod<R>>,
    /// It is that of `**`.
    is_wildcard: bool,
}

/// Verb, method, and what they lead to.
type ByMethod<R> = (Vec<u8>, Vec<u8>, Option<Entry<R>>);

struct Entry<R> {
    rule: R,
    variables: Vec<Variable>,
}

impl<R> Default for Node<R> {
    fn default() -> Node<R> {
        Node { children: HashMap::new(), rules: Vec::new(), is_wildcard: false }
    }
}

/// Looks for a rule.
struct Search<'s> {
    parts: &'s [&'s [u8]],
    method: &'s [u8],
    verb: &'s [u8],
}

impl<R> Paths<R> {
    pub(super) fn new(options: Options) -> Paths<R> {
        Paths { root: Node::default(), verbs: HashSet::new(), options }
    }

    /// Adds a rule for a method and a template; `false` if that is none.
    pub(super) fn add(&mut self, method: &str, template: &str, rule: R) -> bool {
        let Some(Template { segments, verb, variables }) = Template::parse(template) else { return false };
        let mut node = &mut self.root;
        for segment in segments {
            let is_wildcard = segment == "**";
            node = node.children.entry(segment.into_bytes()).or_default();
            node.is_wildcard |= is_wildcard;
        }
        let (verb, method) = (verb.into_bytes(), method.as_bytes().to_vec());
        match node.rules.iter_mut().find(|(of, by, _)| *of == verb && *by == method) {
            // Of two the request can't tell which is meant, and it is for neither.
            Some((_, _, known)) => *known = None,
            None => node.rules.push((verb.clone(), method, Some(Entry { rule, variables }))),
        }
        if !verb.is_empty() {
            self.verbs.insert(verb);
        }
        true
    }

    /// The rule for a request, with what path and query bind.
    pub(super) fn find(&self, method: &[u8], path: &[u8], query: &[u8]) -> Option<(&R, Vec<Binding>)> {
        let (path, verb) = self.verb_of(path);
        let mut parts: Vec<&[u8]> = path.get(1..).unwrap_or_default().split(|byte| *byte == b'/').collect();
        while parts.last().is_some_and(|part| part.is_empty()) {
            parts.pop();
        }
        let search = Search { parts: &parts, method, verb };
        let Entry { rule, variables } = self.root.find(&search, 0)??;
        let mut bindings: Vec<Binding> =
            variables.iter().map(|variable| self.bound(variable, &parts)).collect();
        self.bind_query(query, &mut bindings);
        Some((rule, bindings))
    }

    fn verb_of<'p>(&self, path: &'p [u8]) -> (&'p [u8], &'p [u8]) {
        let colon = path.iter().rposition(|byte| *byte == b':');
        let slash = path.iter().rposition(|byte| *byte == b'/');
        if let Some(colon) = colon.filter(|colon| Some(*colon) > slash)
            && let (Some(before), Some(verb)) = (path.get(..colon), path.get(colon + 1..))
            && (self.options.any_verb || self.verbs.contains(verb))
        {
            return (before, verb);
        }
        (path, b"")
    }

    fn bound(&self, variable: &Variable, parts: &[&[u8]]) -> Binding {
        let (end, several) = match variable.end {
            End::At(end) => (end, end - variable.start > 1),
            End::BeforeEnd(behind) => (parts.len().saturating_sub(behind), true),
        };
        let unescape = if several { self.options.unescape } else { Unescape::All };
        let of_it = parts.get(variable.start..end).unwrap_or_default();
        let values: Vec<Vec<u8>> = of_it.iter().map(|part| unescaped(part, unescape, false)).collect();
        Binding { field: variable.field.clone(), value: values.join(&b'/') }
    }

    fn bind_query(&self, query: &[u8], bindings: &mut Vec<Binding>) {
        for parameter in query.split(|byte| *byte == b'&') {
            let Some(equals) = parameter.iter().position(|byte| *byte == b'=').filter(|at| *at > 0) else {
                continue;
            };
            let (name, value) = (parameter.get(..equals), parameter.get(equals + 1..));
            let name = String::from_utf8_lossy(name.unwrap_or_default());
            if self.options.ignored.contains(&*name) {
                continue;
            }
            let value = unescaped(value.unwrap_or_default(), Unescape::All, self.options.plus_is_space);
            bindings.push(Binding { field: name.split('.').map(str::to_owned).collect(), value });
        }
    }
}

impl<R> Node<R> {
    /// Outer `None`: no rule. Inner: several.
    fn find(&self, search: &Search<'_>, from: usize) -> Option<Option<&Entry<R>>> {
        let mut at = from;
        loop {
            let Some(part) = search.parts.get(at) else {
                // `**` stands for nothing too.
                let below = self.children.get(&b"**"[..]);
                return self.own(search).or_else(|| below.and_then(|child| child.own(search)));
            };
            if let Some(found) = self.below(part, search, at) {
                return Some(found);
            }
            if !self.is_wildcard {
                break;
            }
            at += 1;
        }
        [&b"*"[..], b"**"].iter().find_map(|wildcard| self.below(wildcard, search, at))
    }

    fn below(&self, key: &[u8], search: &Search<'_>, at: usize) -> Option<Option<&Entry<R>>> {
        self.children.get(key)?.find(search, at + 1)
    }

    fn own(&self, search: &Search<'_>) -> Option<Option<&Entry<R>>> {
        let by = |method: &[u8]| {
            self.rules
                .iter()
                .find(|(verb, of, _)| verb == search.verb && of == method)
                .map(|(_, _, entry)| entry)
        };
        by(search.method).or_else(|| by(b"*")).map(Option::as_ref)
    }
}

/// A text without the escapes of a URI; what is none stays.
pub(super) fn unescaped(text: &[u8], unescape: Unescape, plus_is_space: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        let escaped = match (byte, after) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)).map(|(high, low)| high << 4 | low),
            _ => None,
        };
        match escaped.filter(|byte| decodes(*byte, unescape)) {
            Some(byte) => {
                out.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            None if *byte == b'+' && plus_is_space => out.push(b' '),
            None => out.push(*byte),
        }
    }
    out
}

fn decodes(byte: u8, unescape: Unescape) -> bool {
    match unescape {
        Unescape::NotReserved => !b"!#$&'()*+,/:;=?@[]".contains(&byte),
        Unescape::NotSlash => byte != b'/',
        Unescape::All => true,
    }
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn paths(rules: &[(&str, &str)], unescape: Unescape, any_verb: bool) -> Paths<usize> {
        let ignored = HashSet::from(["token".to_owned()]);
        let options = Options { unescape, plus_is_space: false, any_verb, ignored };
        let mut paths = Paths::new(options);
        for (at, (method, template)) in rules.iter().enumerate() {
            assert!(paths.add(method, template, at), "{template}");
        }
        paths
    }

    fn found(paths: &Paths<usize>, method: &str, target: &str) -> Option<(usize, Vec<String>)> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let (rule, bindings) = paths.find(method.as_bytes(), path.as_bytes(), query.as_bytes())?;
        let text = |binding: &Binding| {
            format!("{}={}", binding.field.join("."), String::from_utf8_lossy(&binding.value))
        };
        Some((*rule, bindings.iter().map(text).collect()))
    }

    #[test]
    fn literals_come_before_wildcards_and_those_before_tails() {
        let rules = [
            ("GET", "/a/b"),
            ("GET", "/a/{x}"),
            ("GET", "/a/{y=**}"),
            ("POST", "/a/b"),
            ("GET", "/a/{x}:go"),
            ("*", "/any"),
            ("GET", "/{z=c/**}/end"),
            ("GET", "/"),
        ];
        let paths = paths(&rules, Unescape::NotReserved, false);
        let one = |method, target| found(&paths, method, target).map(|(rule, _)| rule);
        assert_eq!(one("GET", "/a/b"), Some(0));
        assert_eq!(one("GET", "/a/b/"), Some(0));
        assert_eq!(
            found(&paths, "GET", "/a/%62?q.r=%31&token=1&=&s"),
            Some((1, vec!["x=b".into(), "q.r=1".into()]))
        );
        assert_eq!(found(&paths, "GET", "/a/b/c"), Some((2, vec!["y=b/c".into()])));
        assert_eq!(found(&paths, "GET", "/a"), Some((2, vec!["y=".into()])));
        assert_eq!(one("POST", "/a/b"), Some(3));
        assert_eq!(one("POST", "/a/c"), None);
        assert_eq!(found(&paths, "GET", "/a/v:go"), Some((4, vec!["x=v".into()])));
        assert_eq!(found(&paths, "GET", "/a/v:stop"), Some((1, vec!["x=v:stop".into()])));
        assert_eq!((one("PUT", "/any"), one("PUT", "/anything")), (Some(5), None));
        assert_eq!(found(&paths, "GET", "/c/1/2/end"), Some((6, vec!["z=c/1/2".into()])));
        assert_eq!(one("GET", "/"), Some(7));
    }

    #[test]
    fn of_two_rules_for_one_path_none_counts() {
        let paths = paths(&[("GET", "/a/{x}"), ("GET", "/a/*"), ("GET", "/b")], Unescape::All, true);
        assert_eq!(found(&paths, "GET", "/a/1"), None);
        assert_eq!(found(&paths, "GET", "/b:x"), None, "what looks like a verb is one");
    }

    #[test]
    fn escapes_are_taken_off_as_is_asked() {
        for (unescape, expected) in [
            (Unescape::NotReserved, "a%2Fb c%23%zz%4"),
            (Unescape::NotSlash, "a%2Fb c#%zz%4"),
            (Unescape::All, "a/b c#%zz%4"),
        ] {
            let made = unescaped(b"a%2Fb%20c%23%zz%4", unescape, false);
            assert_eq!(String::from_utf8(made).unwrap(), expected);
        }
        assert_eq!(unescaped(b"a+b", Unescape::All, true), b"a b");
    }
}
