//! What a file holds, and how it differs from what it held before.

use std::collections::BTreeMap;

use sixfold_core::document::{self, Format, Node};
use sixfold_core::error::{ConfigError, Place};
use sixfold_core::fast_hash::FastMap;
use xxhash_rust::xxh64::xxh64;

use super::{Change, Document, Kept, Key, Sink};
use crate::config::{EnabledPlugins, EnvVars, Places, Replaced, UNSET, holds_unset, is_of_unset};
use crate::file::{self, Fingerprint, Item, Section, Whole};
use crate::resource::{Id, Kind};
use crate::schema;

/// Between the orders of two neighbours, so that a new one finds room between them.
const GAP: u64 = 1 << 32;

/// A text with resources, and the name it has in errors.
#[derive(Debug, Clone, Copy)]
pub struct Resources<'a> {
    /// The text of an apisix.yaml or an apisix.json.
    pub text: &'a str,
    /// Which of the two.
    pub format: Format,
    /// The file's name.
    pub name: &'a str,
}

/// The resources that a file held when it was read last.
#[derive(Debug, Default)]
pub struct Listing {
    entries: FastMap<Key, Entry>,
    /// What was written in texts about who they are.
    identities: FastMap<(Section, Fingerprint), Identity>,
    plugins: Option<EnabledPlugins>,
    read: bool,
    /// Of the text that was read last.
    places: Places,
}

#[derive(Debug)]
struct Entry {
    fingerprint: Fingerprint,
    /// What the item is called, if it has no id.
    title: Option<u64>,
    order: u64,
    line: u32,
}

/// Who an item is.
#[derive(Debug, Clone)]
enum Identity {
    /// The id that was written.
    Id(Id),
    /// The id of a credential, which stands among the consumers.
    Credential(Id),
    /// Its position stands in for the id. The fingerprint of what people know it by tells whether it is the same one
    /// as before at that position; `None` if there is no such thing.
    Untold(Option<u64>),
}

impl Identity {
    fn of(kind: Kind, node: &Node) -> Identity {
        if let Some(id) = credential_id(kind, node) {
            return Identity::Credential(id);
        }
        id_of(kind, node).map_or_else(|| Identity::Untold(title_of(kind, node)), Identity::Id)
    }

    fn key(&self, kind: Kind, index: usize) -> Key {
        match self {
            Identity::Id(id) => Key { kind, id: id.clone() },
            Identity::Credential(id) => Key { kind: Kind::Credential, id: id.clone() },
            Identity::Untold(_) => Key { kind, id: positional_id(index) },
        }
    }

    /// Whether it is another resource than the one that had its key.
    fn takes_place_of(&self, before: &Entry) -> bool {
        match self {
            Identity::Id(_) | Identity::Credential(_) => false,
            Identity::Untold(title) => title.is_none() || *title != before.title,
        }
    }

    fn title(&self) -> Option<u64> {
        match self {
            Identity::Id(_) | Identity::Credential(_) => None,
            Identity::Untold(title) => *title,
        }
    }
}

/// Why the changes could not be told by the items as they were found.
enum Fault {
    /// A text that the split took for an item does not parse by itself.
    NotAnItem,
    /// The items are in another order, or there is no room left between two of them.
    Order,
}

impl Listing {
    /// Hands over how `resources` differ from what was listed before; answers what is odd.
    ///
    /// # Errors
    /// Faults of the file as a whole: its syntax, keys at its top that hold no list. A wrong list of plugins is odd: the one of
    /// before stays.
    pub fn changes(
        &mut self,
        resources: Resources<'_>,
        environment: &EnvVars,
        sink: &mut dyn Sink,
    ) -> Result<Vec<ConfigError>, Vec<ConfigError>> {
        let named = |errors: Vec<ConfigError>| -> Vec<ConfigError> {
            errors.into_iter().map(|error| error.in_file(resources.name)).collect()
        };
        let Replaced { text, unset, places } = replaced(resources, environment);
        if !unset.is_empty() {
            return Err(named(unset));
        }
        self.places = places;
        let changes = self.changes_of(&text, resources.format, environment, sink);
        let written = |errors: Vec<ConfigError>| named(self.written_all(errors));
        changes.map(written).map_err(written)
    }

    /// Has the next [`Listing::changes`] hand over everything.
    pub(super) fn forget(&mut self) {
        self.read = false;
    }

    /// Where something was written that stands at `place` with the variables replaced.
    pub(super) fn written(&self, place: Place) -> Place {
        self.places.written(place)
    }

    fn written_all(&self, mut errors: Vec<ConfigError>) -> Vec<ConfigError> {
        for error in &mut errors {
            error.place = error.place.map(|place| self.written(place));
        }
        errors
    }

    fn changes_of(
        &mut self,
        text: &str,
        format: Format,
        environment: &EnvVars,
        sink: &mut dyn Sink,
    ) -> Result<Vec<ConfigError>, Vec<ConfigError>> {
        if let (Format::Yaml, Some(items)) = (format, file::split(text)) {
            if items.is_empty() && self.read && !file::has_content(text) {
                let reason = "the file holds nothing: what was read before stays in force";
                return Ok(vec![ConfigError::new(reason)]);
            }
            // Where it can't be told so the layout only looked usual.
            if let Ok(warnings) = self.update_strictly(&items, sink) {
                return Ok(warnings);
            }
        }
        let Whole { items, mut warnings, errors, hidden: _ } = file::parse(text, format, environment);
        if !errors.is_empty() {
            return Err(errors);
        }
        if let Ok(more) = self.update_strictly(&items, sink) {
            warnings.extend(more);
        }
        Ok(warnings)
    }

    /// Hands over every resource that can be read, whatever else is wrong with the file: all that is odd about it, and all
    /// that is wrong with it as a whole. Of a resource with a variable that is not set only its key is told.
    pub(super) fn look_through(
        &mut self,
        resources: Resources<'_>,
        environment: &EnvVars,
        sink: &mut dyn Sink,
    ) -> (Vec<ConfigError>, Vec<ConfigError>) {
        let Replaced { text, unset, places } = replaced(resources, environment);
        self.places = places;
        let mut errors = Vec::new();
        // What variables that are not set hide is seen in the whole.
        let is_split = resources.format == Format::Yaml && unset.is_empty();
        let split = if is_split { file::split(&text) } else { None };
        let by_split = split.map(|items| {
            let (plugins, faults) = listed_plugins(&items)?;
            Ok::<_, Fault>((self.update(&items, plugins, unless_unset, sink)?, faults))
        });
        let warnings = match by_split {
            Some(Ok((warnings, faults))) => {
                errors.extend(faults);
                warnings
            }
            _ => {
                let whole = file::parse(&text, resources.format, environment);
                let (mut warnings, items) = (whole.warnings, whole.items);
                errors.extend(whole.errors);
                let (plugins, faults) = listed_plugins(&items).unwrap_or_default();
                errors.extend(faults);
                warnings.extend(self.update(&items, plugins, unless_unset, sink).unwrap_or_default());
                sink.hidden(whole.hidden);
                warnings
            }
        };
        let (mut warnings, mut errors) = (self.written_all(warnings), self.written_all(errors));
        warnings.retain(|warning| !is_of_unset(warning));
        errors.retain(|error| !is_of_unset(error));
        errors.extend(unset);
        let named =
            |all: Vec<ConfigError>| all.into_iter().map(|error| error.in_file(resources.name)).collect();
        (named(warnings), named(errors))
    }

    fn update_strictly(
        &mut self,
        items: &[Item<'_>],
        sink: &mut dyn Sink,
    ) -> Result<Vec<ConfigError>, Fault> {
        let (plugins, faults) = listed_plugins(items)?;
        // As of a resource that is wrong, what was there before counts: of the first list that of config.yaml.
        let plugins = if faults.is_empty() { plugins } else { self.plugins.clone() };
        let mut warnings = self.update(items, plugins, Document::node, sink)?;
        warnings.extend(faults.into_iter().map(|mut fault| {
            fault.reason.push_str("; the list of plugins stays as it was");
            fault
        }));
        Ok(warnings)
    }

    /// Hands over how `items` differ from what was listed before, each as `document` makes it.
    fn update(
        &mut self,
        items: &[Item<'_>],
        plugins: Option<EnabledPlugins>,
        document: fn(Node) -> Document,
        sink: &mut dyn Sink,
    ) -> Result<Vec<ConfigError>, Fault> {
        let mut warnings = Vec::new();
        let all_again = !self.read || plugins != self.plugins;
        if plugins != self.plugins {
            sink.plugins(plugins.clone());
        }
        let next = match self.hand_over(items, all_again, false, document, sink, &mut warnings) {
            Err(Fault::Order) => {
                sink.start_over();
                warnings.clear();
                self.hand_over(items, all_again, true, document, sink, &mut warnings)
            }
            other => other,
        };
        let mut next = next.inspect_err(|_| sink.start_over())?;
        for key in self.entries.keys().filter(|key| !next.entries.contains_key(key)) {
            sink.change(Change { key: key.clone(), revision: 0, order: 0, value: None, takes_place: false });
        }
        (next.plugins, next.read, next.places) = (plugins, true, std::mem::take(&mut self.places));
        *self = next;
        Ok(warnings)
    }

    /// Hands over every item that is new or another one; all of them if `all_again`, and with new orders if
    /// `reorder`.
    fn hand_over(
        &self,
        items: &[Item<'_>],
        all_again: bool,
        reorder: bool,
        document: fn(Node) -> Document,
        sink: &mut dyn Sink,
        warnings: &mut Vec<ConfigError>,
    ) -> Result<Listing, Fault> {
        let known = self.known(items);
        let mut orders = Orders::new(&known, reorder);
        let mut next = Listing::default();
        for (at, item) in items.iter().enumerate() {
            let Section::Resources(kind) = item.section else { continue };
            let fingerprint = item.fingerprint;
            let mut node = None;
            let identity = match known.get(at).and_then(Option::as_ref) {
                Some(known) => known.identity.clone(),
                None => {
                    let mut read = item.parse().ok_or(Fault::NotAnItem)?;
                    if read.is_null() {
                        warnings.push(
                            ConfigError::field(kind.section(), "an item is empty")
                                .at(Place::new(item.line, 1)),
                        );
                        continue;
                    }
                    empty_tables(&mut read);
                    let identity = Identity::of(kind, &read);
                    node = Some(read);
                    identity
                }
            };
            let (key, title) = (identity.key(kind, item.index), identity.title());
            let before = self.entries.get(&key);
            let order = orders.of(kind, at, before.map(|entry| entry.order)).ok_or(Fault::Order)?;
            let same = before.is_some_and(|entry| entry.fingerprint == fingerprint && entry.order == order);
            let takes_place = before.is_some_and(|before| identity.takes_place_of(before));
            next.identities.insert((item.section, fingerprint), identity);
            let entry = Entry { fingerprint, title, order, line: item.line };
            if let Some(first) = next.entries.insert(key.clone(), entry) {
                let reason = format!(
                    "found duplicate id {} in {}, first given at line {}: this one counts",
                    key.id,
                    kind.section(),
                    first.line
                );
                let warning = ConfigError::field("id", reason).at(Place::new(item.line, 1));
                warnings.push(warning.in_resource(key.to_string()));
            } else if same && !all_again {
                continue;
            }
            let node = match node {
                Some(node) => node,
                None => {
                    let mut node = item.parse().ok_or(Fault::NotAnItem)?;
                    empty_tables(&mut node);
                    node
                }
            };
            let value = Some(document(node));
            sink.change(Change { key, revision: fingerprint.revision(), order, value, takes_place });
        }
        Ok(next)
    }

    /// Of every item what is known from its text alone.
    fn known(&self, items: &[Item<'_>]) -> Vec<Option<Known>> {
        let known = |item: &Item<'_>| {
            let Section::Resources(kind) = item.section else { return None };
            let identity = self.identities.get(&(item.section, item.fingerprint))?.clone();
            let key = identity.key(kind, item.index);
            let entry = self.entries.get(&key).filter(|entry| entry.fingerprint == item.fingerprint);
            Some(Known { kind, identity, order: entry.map(|entry| entry.order) })
        };
        items.iter().map(known).collect()
    }

    /// The line on which a resource begins.
    pub(super) fn line(&self, key: &Key) -> Option<u32> {
        self.entries.get(key).map(|entry| entry.line)
    }
}

/// What is known of an item that was there before.
struct Known {
    kind: Kind,
    identity: Identity,
    /// Unless it is the same text with another id, by its position.
    order: Option<u64>,
}

/// Gives items their orders: those that stay keep theirs, new ones get one between their neighbours'.
struct Orders {
    /// The order of the next item of its kind that stays.
    following: Vec<Option<u64>>,
    last: BTreeMap<Kind, u64>,
    anew: bool,
}

impl Orders {
    fn new(known: &[Option<Known>], anew: bool) -> Orders {
        let mut next: BTreeMap<Kind, u64> = BTreeMap::new();
        let mut following: Vec<Option<u64>> = vec![None; known.len()];
        // Items whose kind is not known here are looked up by their own kind in `of`; a list is in one piece.
        let mut kind = None;
        for (at, known) in known.iter().enumerate().rev() {
            if let Some(Known { kind: of, order, .. }) = known {
                kind = Some(*of);
                if let Some(order) = order {
                    next.insert(*of, *order);
                }
            }
            following[at] = kind.and_then(|kind| next.get(&kind).copied());
        }
        Orders { following, last: BTreeMap::new(), anew }
    }

    /// The order of the item at position `at`; `None` if there is none between its neighbours'.
    fn of(&mut self, kind: Kind, at: usize, own: Option<u64>) -> Option<u64> {
        let last = self.last.get(&kind).copied().unwrap_or(0);
        let following = if self.anew { None } else { self.following.get(at).copied().flatten() };
        let fits = |order: u64| order > last && following.is_none_or(|following| order <= following);
        let order = match own.filter(|own| !self.anew && fits(*own)) {
            Some(own) => own,
            None => match following {
                None => last.checked_add(GAP)?,
                Some(following) => {
                    let room = following.checked_sub(last)?;
                    if room < 2 {
                        return None;
                    }
                    last + room / 2
                }
            },
        };
        self.last.insert(kind, order);
        Some(order)
    }
}

/// Makes a null an empty table, which it is for APISIX: `prometheus:` alone is a plugin with its defaults.
fn empty_tables(node: &mut Node) {
    match &mut node.value {
        document::Value::Null => node.value = document::Value::Object(document::Object::default()),
        document::Value::Array(items) => items.iter_mut().for_each(empty_tables),
        document::Value::Object(object) => object.values_mut().for_each(empty_tables),
        _ => {}
    }
}

/// The id that an item without one has, by its position from 1.
fn positional_id(index: usize) -> Id {
    Id::from(format!("arr_{index}").as_str())
}

/// The id of an item among the consumers that is a credential: `jack/credentials/one`.
fn credential_id(kind: Kind, node: &Node) -> Option<Id> {
    let id = node.get("id").filter(|_| kind == Kind::Consumer)?.as_str()?;
    id.contains("/credentials/").then(|| Id::from(id))
}

/// The id as written, even if the item is wrong otherwise.
fn id_of(kind: Kind, node: &Node) -> Option<Id> {
    match node.get(kind.id_field()).map(|node| &node.value) {
        Some(document::Value::String(text)) => Some(Id::from(text.as_str())),
        Some(document::Value::Number(number)) => Some(Id::from(number.to_string().as_str())),
        _ => None,
    }
}

/// The fingerprint of what people know an item without an id by: the names that certificates are for, what requests a
/// route is for, the name of anything else.
fn title_of(kind: Kind, node: &Node) -> Option<u64> {
    let fields: &[&str] = match kind {
        Kind::Route => &[
            "name",
            "uri",
            "uris",
            "host",
            "hosts",
            "methods",
            "vars",
            "remote_addr",
            "remote_addrs",
            "priority",
        ],
        Kind::Ssl => &["sni", "snis"],
        _ => &["name"],
    };
    let mut title = Vec::new();
    for field in fields {
        if let Some(value) = node.get(field) {
            // Each followed by what no JSON holds as it is, so that no two lists read alike.
            title.extend_from_slice(field.as_bytes());
            title.push(0);
            title.extend_from_slice(value.to_json().to_string().as_bytes());
            title.push(0);
        }
    }
    (!title.is_empty()).then(|| xxh64(&title, 0))
}

/// The values of a kind that a text holds, in its order; what can't be read is left out.
pub(super) fn values_of(kind: Kind, resources: Resources<'_>, environment: &EnvVars) -> Vec<(Key, Kept)> {
    #[derive(Default)]
    struct Gathered(Vec<Change>);
    impl Sink for Gathered {
        fn plugins(&mut self, _: Option<EnabledPlugins>) {}

        fn change(&mut self, change: Change) {
            self.0.push(change);
        }

        fn start_over(&mut self) {
            self.0.clear();
        }
    }
    let mut gathered = Gathered::default();
    Listing::default().look_through(resources, environment, &mut gathered);
    let mut changes = gathered.0;
    changes.retain(|change| change.key.kind == kind);
    changes.sort_by_key(|change| change.order);
    let kept = |Change { key, value, order, .. }: Change| {
        let value = value?.read().ok()?.to_json().to_string().into();
        // A file has no revisions: what it holds has those of its places.
        Some((key, Kept { value, created: order / GAP, modified: order / GAP }))
    };
    changes.into_iter().filter_map(kept).collect()
}

/// The plugins of a list, if there is one.
type Listed = Option<EnabledPlugins>;

/// The text with its variables replaced, which in JSON are replaced in its values.
fn replaced<'a>(resources: Resources<'a>, environment: &EnvVars) -> Replaced<'a> {
    match resources.format {
        Format::Yaml => file::substitute(resources.text, environment),
        Format::Json => Replaced { text: resources.text.into(), ..Replaced::default() },
    }
}

/// The resource, unless a variable that is not set is in it.
fn unless_unset(node: Node) -> Document {
    if holds_unset(&node) { Document::unread() } else { Document::node(node) }
}

/// The plugins that the file lists, `None` if it has no such list or not all of it is known, and which of its entries are
/// wrong.
fn listed_plugins(items: &[Item<'_>]) -> Result<(Listed, Vec<ConfigError>), Fault> {
    let mut listed = items.iter().filter(|item| item.section == Section::Plugins).peekable();
    if listed.peek().is_none() {
        return Ok((None, Vec::new()));
    }
    let (mut enabled, mut faults) = (EnabledPlugins::none(), Vec::new());
    for item in listed {
        let node = item.parse().ok_or(Fault::NotAnItem)?;
        match listed_plugin(&node, item, &mut enabled) {
            Ok(()) => {}
            Err(fault) => faults.push(fault),
        }
    }
    let mut names = enabled.http.iter().chain(&enabled.streams).flatten();
    let is_known = faults.is_empty() && !names.any(|name| name.contains(UNSET));
    Ok((is_known.then_some(enabled), faults))
}

/// Enables what an entry of the file's list of plugins names.
fn listed_plugin(node: &Node, item: &Item<'_>, enabled: &mut EnabledPlugins) -> Result<(), ConfigError> {
    let mut value = serde_json::Value::Array(vec![node.to_json()]);
    schema::plugins_list().validate(&mut value).map_err(|violation| {
        let place = Place::new(item.line, node.place.column);
        ConfigError::new(violation.message).in_index(item.index - 1).in_key("plugins").at(place)
    })?;
    let is_stream = node.get("stream").is_some_and(|stream| stream.value == document::Value::Bool(true));
    if let Some(name) = node.get("name").and_then(Node::as_str) {
        enabled.add(name, is_stream);
    }
    Ok(())
}
