//! A list of routes of which the first that fits is taken, as APISIX's routes, of which the one with the longest path is.
//!
//! Where a route with a shorter path, or an expression, goes before one with a longer path, it stands at the longer path
//! too, with a higher priority.

use super::pieces::{Ids, escape, literal_prefix};
use regex::Regex;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Which paths a route takes.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Path {
    Exact(String),
    Prefix(String),
    /// Begins to match at the start.
    Regex(String),
    /// One of these two in any case.
    AnyCase(Box<Path>),
}

impl Path {
    /// Where APISIX's tree has it: the text before `*`, or all of it.
    fn slot(&self) -> Slot {
        match self {
            Path::Exact(path) => Slot { text: path.clone(), is_exact: true },
            Path::Prefix(path) => Slot { text: path.clone(), is_exact: false },
            Path::Regex(expression) => {
                let prefix = literal_prefix(expression);
                Slot { text: if prefix.is_empty() { "/".to_owned() } else { prefix }, is_exact: false }
            }
            Path::AnyCase(_) => Slot { text: "/".to_owned(), is_exact: false },
        }
    }

    /// What has to hold besides.
    fn condition(&self) -> Option<Value> {
        match self {
            Path::Exact(_) | Path::Prefix(_) => None,
            Path::Regex(expression) => Some(json!(["uri", "~~", from_start(expression)])),
            Path::AnyCase(path) => match &**path {
                Path::Exact(path) => Some(json!(["uri", "~*", format!("^{}$", escape(path))])),
                Path::Prefix(path) => Some(json!(["uri", "~*", format!("^{}", escape(path))])),
                Path::Regex(expression) => Some(json!(["uri", "~*", from_start(expression)])),
                Path::AnyCase(_) => None,
            },
        }
    }

    /// Whether a request may be its that comes to this place of the tree.
    fn may_take(&self, slot: &Slot, compiled: Option<&Regex>) -> bool {
        let own = self.slot();
        match self {
            Path::Exact(path) => slot.is_exact && *path == slot.text,
            Path::Prefix(path) => slot.text.starts_with(path.as_str()),
            Path::Regex(_) | Path::AnyCase(_) if slot.is_exact => {
                compiled.is_none_or(|regex| regex.is_match(&slot.text))
            }
            Path::Regex(_) | Path::AnyCase(_) => {
                slot.text.starts_with(&own.text) || own.text.starts_with(&slot.text)
            }
        }
    }

    fn compiled(&self) -> Option<Regex> {
        let condition = self.condition()?;
        let any_case = if condition.get(1)? == "~*" { "(?i)" } else { "" };
        Regex::new(&format!("{any_case}{}", condition.get(2)?.as_str()?)).ok()
    }
}

/// An expression that is held against a text from its start.
fn from_start(expression: &str) -> String {
    let bare = expression.strip_prefix('^').unwrap_or(expression);
    // Of a choice the sign at the start is its first branch's.
    if bare.contains('|') { format!("^(?:{bare})") } else { format!("^{bare}") }
}

/// A place of APISIX's tree of paths.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Slot {
    text: String,
    is_exact: bool,
}

impl Slot {
    fn uri(&self) -> String {
        if self.is_exact { self.text.clone() } else { format!("{}*", self.text) }
    }
}

/// A route of the list.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) id: String,
    /// Any of them.
    pub(super) paths: Vec<Path>,
    /// What has to hold besides, all of it.
    pub(super) vars: Vec<Value>,
    /// All but id, path, priority and `vars`.
    pub(super) route: Map<String, Value>,
}

/// The routes of a list, in which an entry goes before those behind it.
pub(super) fn routes(entries: &[Entry], ids: &mut Ids) -> Vec<Value> {
    let all: Vec<(usize, &Path, Option<Regex>)> = entries
        .iter()
        .enumerate()
        .flat_map(|(at, entry)| entry.paths.iter().map(move |path| (at, path, path.compiled())))
        .collect();
    // The last of the list that is at a place by itself.
    let mut slots: BTreeMap<Slot, usize> = BTreeMap::new();
    for (at, path, _) in &all {
        let last = slots.entry(path.slot()).or_insert(*at);
        *last = (*last).max(*at);
    }
    let mut found = Vec::new();
    for (slot, last) in &slots {
        let mut here: Vec<(usize, &Path)> = Vec::new();
        for (at, path, compiled) in &all {
            let is_own = path.slot() == *slot;
            let is_before = at < last && path.may_take(slot, compiled.as_ref());
            if is_own || is_before {
                here.push((*at, path));
            }
        }
        for (rank, (at, path)) in here.iter().enumerate() {
            let priority = if here.len() > 1 { here.len() - rank } else { 0 };
            let is_own = path.slot() == *slot;
            found.extend(entries.get(*at).map(|entry| (*at, !is_own, entry.at(slot, path, priority))));
        }
    }
    // Those of one entry beside each other, the one at its own path first, which has the entry's id.
    found.sort_by_key(|(at, is_copy, _)| (*at, *is_copy));
    let routes = found.into_iter().map(|(at, _, mut route)| {
        let id = ids.id(entries.get(at).map_or("", |entry| &entry.id));
        let mut whole = Map::from_iter([("id".to_owned(), Value::from(id))]);
        whole.append(&mut route);
        Value::Object(whole)
    });
    routes.collect()
}

impl Entry {
    fn at(&self, slot: &Slot, path: &Path, priority: usize) -> Map<String, Value> {
        let mut route = Map::from_iter([("uri".to_owned(), Value::from(slot.uri()))]);
        if priority > 0 {
            route.insert("priority".to_owned(), priority.into());
        }
        let vars: Vec<Value> = path.condition().into_iter().chain(self.vars.iter().cloned()).collect();
        if !vars.is_empty() {
            route.insert("vars".to_owned(), vars.into());
        }
        route.extend(self.route.clone());
        route
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(paths: &[Path]) -> Vec<(String, String, u64)> {
        let entry = |(at, path): (usize, &Path)| Entry {
            id: format!("r{at}"),
            paths: vec![path.clone()],
            vars: Vec::new(),
            route: Map::new(),
        };
        let entries: Vec<Entry> = paths.iter().enumerate().map(entry).collect();
        let told = |route: &Value| {
            let text = |name: &str| route[name].as_str().unwrap_or_default().to_owned();
            (text("id"), text("uri"), route["priority"].as_u64().unwrap_or(0))
        };
        routes(&entries, &mut Ids::default()).iter().map(told).collect()
    }

    fn told(routes: &[(&str, &str, u64)]) -> Vec<(String, String, u64)> {
        routes.iter().map(|(id, uri, priority)| ((*id).to_owned(), (*uri).to_owned(), *priority)).collect()
    }

    #[test]
    fn longer_paths_that_come_first_need_nothing() {
        let prefix = |path: &str| Path::Prefix(path.to_owned());
        assert_eq!(
            of(&[prefix("/a/b"), prefix("/a"), prefix("/")]),
            told(&[("r0", "/a/b*", 0), ("r1", "/a*", 0), ("r2", "/*", 0)])
        );
    }

    #[test]
    fn what_comes_first_goes_before_longer_paths() {
        let prefix = |path: &str| Path::Prefix(path.to_owned());
        let regex = Path::Regex("^/a/[0-9]+$".to_owned());
        assert_eq!(
            of(&[regex.clone(), prefix("/a/b"), prefix("/c")]),
            told(&[("r0", "/a/*", 0), ("r0.2", "/a/b*", 2), ("r1", "/a/b*", 1), ("r2", "/c*", 0)])
        );
        // An expression that can't match a path that stands for itself is not there.
        assert_eq!(
            of(&[regex, Path::Exact("/a/x".to_owned()), Path::Exact("/a/1".to_owned())]),
            told(&[("r0", "/a/*", 0), ("r0.2", "/a/1", 2), ("r1", "/a/x", 0), ("r2", "/a/1", 1)])
        );
    }
}
