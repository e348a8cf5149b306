//! A list of routes of which the first that fits is taken, as APISIX's routes, of which the one with the longest path is.
//!
//! Where a route with a shorter path, or an expression, goes before one with a longer path, it stands at the longer path
//! too, with a higher priority.

use super::pieces::{Ids, escape, literal_prefix};
use regex::Regex;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

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

/// One of an entry's paths.
struct Placed<'e> {
    entry: usize,
    path: &'e Path,
    slot: Slot,
    compiled: Option<Regex>,
}

/// The paths of a list, found by where they are in the tree.
struct Paths<'e> {
    /// In the order of the list.
    all: Vec<Placed<'e>>,
    /// Places in it, by the texts of their slots.
    by_text: BTreeMap<String, Vec<usize>>,
    /// Those of them that may take what is below a shorter text than their own.
    expressions: BTreeMap<String, Vec<usize>>,
}

impl<'e> Paths<'e> {
    fn of(entries: &'e [Entry]) -> Paths<'e> {
        let (mut by_text, mut expressions) = (BTreeMap::new(), BTreeMap::new());
        let placed = |(entry, path): (usize, &'e Path)| Placed {
            entry,
            path,
            slot: path.slot(),
            compiled: path.compiled(),
        };
        let paths =
            entries.iter().enumerate().flat_map(|(at, entry)| entry.paths.iter().map(move |path| (at, path)));
        let all: Vec<_> = paths.map(placed).collect();
        for (at, Placed { path, slot, .. }) in all.iter().enumerate() {
            let add =
                |map: &mut BTreeMap<String, Vec<usize>>| map.entry(slot.text.clone()).or_default().push(at);
            add(&mut by_text);
            if matches!(path, Path::Regex(_) | Path::AnyCase(_)) {
                add(&mut expressions);
            }
        }
        Paths { all, by_text, expressions }
    }

    /// Those that are at a slot or before `last` in the list and may take some of its requests, in their order.
    fn here(&self, slot: &Slot, last: usize) -> Vec<&Placed<'e>> {
        // An expression that begins with anything is at the root.
        let ends = slot.text.char_indices().map(|(at, char)| at + char.len_utf8());
        let above = ends.filter_map(|end| slot.text.get(..end)).filter(|text| *text != "/").chain(["", "/"]);
        let above = above.filter_map(|text| self.by_text.get(text));
        let below = self.expressions.range(slot.text.clone()..);
        let below = below.take_while(|(text, _)| !slot.is_exact && text.starts_with(&slot.text));
        let found: BTreeSet<usize> =
            above.chain(below.map(|(_, places)| places)).flatten().copied().collect();
        let is_here = |one: &&Placed<'_>| {
            one.slot == *slot || one.entry < last && one.path.may_take(slot, one.compiled.as_ref())
        };
        found.into_iter().filter_map(|at| self.all.get(at)).filter(is_here).collect()
    }
}

/// The routes of a list, in which an entry goes before those behind it.
pub(super) fn routes(entries: &[Entry], ids: &mut Ids) -> Vec<Value> {
    let paths = Paths::of(entries);
    // The last of the list that is at a place by itself.
    let mut slots: BTreeMap<&Slot, usize> = BTreeMap::new();
    for Placed { entry, slot, .. } in &paths.all {
        let last = slots.entry(slot).or_insert(*entry);
        *last = (*last).max(*entry);
    }
    let mut found = Vec::new();
    for (slot, last) in slots {
        let here = paths.here(slot, last);
        for (rank, one) in here.iter().enumerate() {
            let priority = if here.len() > 1 { here.len() - rank } else { 0 };
            let route = entries.get(one.entry).map(|entry| entry.at(slot, one.path, priority));
            found.extend(route.map(|route| (one.entry, one.slot != *slot, route)));
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

    /// Each place looked at all paths of the list.
    #[test]
    fn what_is_found_by_places_is_what_a_look_at_all_finds() {
        let texts = ["/", "/a", "/a/", "/a/b", "/a/b/c", "/ab", "/\u{e9}", "/c"];
        let mut paths: Vec<Path> = Vec::new();
        for (at, text) in texts.iter().enumerate() {
            let text = (*text).to_owned();
            paths.push(Path::Exact(text.clone()));
            paths.push(Path::Regex(format!("^{text}(x|y)?$")));
            paths.push(Path::Prefix(text.clone()));
            paths.push(Path::Regex(format!("{text}[a-z]*")));
            paths.push(Path::AnyCase(Box::new(Path::Prefix(text))));
            paths.rotate_left(at * 3);
        }
        let entry = |(at, path): (usize, &Path)| Entry {
            id: at.to_string(),
            paths: vec![path.clone()],
            vars: Vec::new(),
            route: Map::new(),
        };
        let entries: Vec<Entry> = paths.iter().enumerate().map(entry).collect();
        let known = Paths::of(&entries);
        for slot in known.all.iter().map(|one| &one.slot) {
            for last in [0, 7, entries.len()] {
                let is_here = |one: &&Placed<'_>| {
                    one.slot == *slot || one.entry < last && one.path.may_take(slot, one.compiled.as_ref())
                };
                let all: Vec<usize> = known.all.iter().filter(is_here).map(|one| one.entry).collect();
                let found: Vec<usize> = known.here(slot, last).iter().map(|one| one.entry).collect();
                assert_eq!(found, all, "{slot:?} {last}");
            }
        }
    }
}
