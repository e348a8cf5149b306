//! YAML to nodes, on the events of `granit-parser`.

use std::borrow::Cow;
use std::collections::HashMap;

use granit_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Tag};

use super::{Entry, Node, Object, Options, Place, Value, scalar};
use crate::error::ConfigError;

/// An alias that stands for a key, or an anchor, is known to the parser by this number; 0 is none.
type AnchorId = usize;

/// Reads the one document of a text, `None` if there is no value in it.
pub(super) fn parse(text: &str, options: &Options) -> Result<Option<Node>, ConfigError> {
    let mut parser_options = granit_parser::options! {
        // Ours counts both kinds together and has its own words.
        flow_nesting_limit: options.max_depth.saturating_add(1),
        block_nesting_limit: options.max_depth.saturating_add(1),
    };
    parser_options.set_emit_comments(false);
    let mut builder = Builder::new(options);
    for event in Parser::new_from_str_with_options(text, parser_options) {
        if options.lenient && builder.first_ended {
            break;
        }
        let (event, span) = event.map_err(|error| syntax_error(&error, builder.open.last()))?;
        builder.event(event, place(span.start), span.start.index() == span.end.index())?;
    }
    Ok(builder.root.filter(|root| !(root.is_null() && builder.implicit_null)))
}

fn place(marker: Marker) -> Place {
    let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    Place::new(number(marker.line()), number(marker.col().saturating_add(1)))
}

fn syntax_error(error: &ScanError, open: Option<&Frame>) -> ConfigError {
    let mut reason = format!("invalid YAML: {}", error.info());
    if let Some(frame) = open {
        let kind = if matches!(frame.kind, Kind::Array(_)) { "array" } else { "object" };
        reason.push_str(&format!(" (inside the {kind} that begins at {})", frame.place));
    }
    ConfigError::new(reason).at(place(*error.marker()))
}

/// An array or object whose end has not come yet.
struct Frame {
    place: Place,
    anchor: AnchorId,
    kind: Kind,
}

enum Kind {
    Array(Vec<Node>),
    Object {
        entries: Vec<Entry>,
        key: Option<(String, Place)>,
        /// What `<<` brings in; the object's own keys win.
        merged: Vec<Node>,
        key_is_merge: bool,
    },
}

struct Builder<'a> {
    options: &'a Options,
    open: Vec<Frame>,
    anchors: HashMap<AnchorId, Node>,
    alias_nodes: usize,
    root: Option<Node>,
    /// Whether the root is a null that nobody wrote: an empty text, or `---` alone.
    implicit_null: bool,
    documents: usize,
    first_ended: bool,
}

impl<'a> Builder<'a> {
    fn new(options: &'a Options) -> Self {
        Builder {
            options,
            open: Vec::new(),
            anchors: HashMap::new(),
            alias_nodes: 0,
            root: None,
            implicit_null: false,
            documents: 0,
            first_ended: false,
        }
    }

    fn event(&mut self, event: Event<'_>, place: Place, unwritten: bool) -> Result<(), ConfigError> {
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(
                        ConfigError::new("a second YAML document begins here, only one is read").at(place)
                    );
                }
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                if self.open.is_empty() {
                    self.implicit_null = unwritten && tag.is_none();
                }
                self.scalar(&text, style, anchor, tag, place)
            }
            Event::SequenceStart(_, anchor, tag) => {
                collection_tag(tag.as_deref(), "seq", place)?;
                self.open(Frame { place, anchor, kind: Kind::Array(Vec::new()) })
            }
            Event::MappingStart(_, anchor, tag) => {
                collection_tag(tag.as_deref(), "map", place)?;
                let kind =
                    Kind::Object { entries: Vec::new(), key: None, merged: Vec::new(), key_is_merge: false };
                self.open(Frame { place, anchor, kind })
            }
            Event::DocumentEnd => {
                self.first_ended = true;
                Ok(())
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(anchor) => self.alias(anchor, place),
            _ => Ok(()),
        }
    }

    fn scalar(
        &mut self,
        text: &str,
        style: ScalarStyle,
        anchor: AnchorId,
        tag: Option<Cow<'_, Tag>>,
        place: Place,
    ) -> Result<(), ConfigError> {
        let plain = style == ScalarStyle::Plain;
        if let Some(Frame { kind: Kind::Object { key: key @ None, key_is_merge, .. }, .. }) =
            self.open.last_mut()
        {
            *key_is_merge = plain && text == "<<";
            *key = Some((text.to_owned(), place));
            if anchor != 0 {
                self.anchors.insert(anchor, Node { place, value: Value::String(text.to_owned()) });
            }
            return Ok(());
        }
        let value = match tag {
            Some(tag) => tagged(text, &tag, place)?,
            None if plain => scalar::resolve(text, self.options),
            None => Value::String(text.to_owned()),
        };
        self.add(Node { place, value }, anchor)
    }

    fn open(&mut self, frame: Frame) -> Result<(), ConfigError> {
        if let Some(Frame { kind: Kind::Object { key: None, .. }, .. }) = self.open.last() {
            return Err(ConfigError::new("a key must be a string").at(frame.place));
        }
        if self.open.len() >= self.options.max_depth {
            return Err(too_deep(self.options, frame.place));
        }
        self.open.push(frame);
        Ok(())
    }

    fn close(&mut self) -> Result<(), ConfigError> {
        let Some(Frame { place, anchor, kind }) = self.open.pop() else { return Ok(()) };
        let value = match kind {
            Kind::Array(items) => Value::Array(items),
            Kind::Object { entries, merged, .. } => Value::Object(merge(
                Object::with(entries, self.options.last_key_counts).map_err(|error| self.in_open(error))?,
                merged,
            )),
        };
        self.add(Node { place, value }, anchor)
    }

    /// Puts a complete value where it belongs.
    fn add(&mut self, node: Node, anchor: AnchorId) -> Result<(), ConfigError> {
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut().map(|frame| &mut frame.kind) {
            None => self.root = Some(node),
            Some(Kind::Array(items)) => items.push(node),
            Some(Kind::Object { entries, key, merged, key_is_merge }) => match key.take() {
                Some((_, key_place)) if *key_is_merge => {
                    merge_source(node, merged).map_err(|error| error.at(key_place))?;
                }
                Some((key, key_place)) => entries.push(Entry { key, key_place, value: node }),
                None => return Err(ConfigError::new("a key must be a string").at(node.place)),
            },
        }
        Ok(())
    }

    fn alias(&mut self, anchor: AnchorId, place: Place) -> Result<(), ConfigError> {
        let Some(node) = self.anchors.get(&anchor) else {
            return Err(ConfigError::new("the alias stands inside the value that it refers to").at(place));
        };
        let (nodes, depth) = weigh(node);
        self.alias_nodes = self.alias_nodes.saturating_add(nodes);
        if self.alias_nodes > self.options.max_alias_nodes {
            let limit = self.options.max_alias_nodes;
            return Err(ConfigError::new(format!("aliases add more than {limit} values")).at(place));
        }
        if self.open.len() + depth > self.options.max_depth {
            return Err(too_deep(self.options, place));
        }
        let node = node.clone();
        if let Some(Frame { kind: Kind::Object { key: key @ None, key_is_merge, .. }, .. }) =
            self.open.last_mut()
        {
            let Value::String(text) = node.value else {
                return Err(ConfigError::new("a key must be a string").at(place));
            };
            *key_is_merge = false;
            *key = Some((text, place));
            return Ok(());
        }
        self.add(node, 0)
    }

    /// Puts the path of the value being read before the error's.
    fn in_open(&self, error: ConfigError) -> ConfigError {
        self.open.iter().rev().fold(error, |error, frame| match &frame.kind {
            Kind::Array(items) => error.in_index(items.len()),
            Kind::Object { key: Some((key, _)), .. } => error.in_key(key),
            Kind::Object { .. } => error,
        })
    }
}

fn too_deep(options: &Options, place: Place) -> ConfigError {
    ConfigError::new(format!("values are nested deeper than {}", options.max_depth)).at(place)
}

/// What a copy costs: values (strings by length too) and depth.
fn weigh(node: &Node) -> (usize, usize) {
    let inner = |nodes: &mut dyn Iterator<Item = &Node>| {
        nodes.map(weigh).fold((1, 1), |(count, depth), (more, inner)| (count + more, depth.max(inner + 1)))
    };
    match &node.value {
        Value::String(text) => (1 + text.len() / 64, 0),
        Value::Array(items) => inner(&mut items.iter()),
        Value::Object(object) => inner(&mut object.entries().iter().map(|entry| &entry.value)),
        _ => (1, 0),
    }
}

/// `<<: *a` or `<<: [*a, *b]`.
fn merge_source(node: Node, merged: &mut Vec<Node>) -> Result<(), ConfigError> {
    match node.value {
        Value::Object(_) => merged.push(node),
        Value::Array(items) if items.iter().all(|item| item.as_object().is_some()) => merged.extend(items),
        _ => return Err(ConfigError::field("<<", "must be an object or an array of objects")),
    }
    Ok(())
}

/// Adds the keys that are not there yet; earlier sources win over later ones.
fn merge(object: Object, merged: Vec<Node>) -> Object {
    if merged.is_empty() {
        return object;
    }
    let mut entries = object.into_entries();
    for node in merged {
        if let Value::Object(source) = node.value {
            for entry in source.into_entries() {
                if !entries.iter().any(|own| own.key == entry.key) {
                    entries.push(entry);
                }
            }
        }
    }
    Object(entries)
}

/// The value of a scalar with `!`, `!!str`, `!!int`, `!!float`, `!!bool` or `!!null`.
fn tagged(text: &str, tag: &Tag, place: Place) -> Result<Value, ConfigError> {
    if matches!((tag.handle(), tag.suffix()), ("!", "") | ("", "!")) {
        return Ok(Value::String(text.to_owned()));
    }
    let name = core_tag(tag);
    let value = match name {
        Some("str") => Some(Value::String(text.to_owned())),
        Some("null") => scalar::is_null(text).then_some(Value::Null),
        Some("bool") => scalar::boolean(text).map(Value::Bool),
        Some("int") => scalar::number(text, false).filter(|number| !number.is_f64()).map(Value::Number),
        Some("float") => text.parse().ok().and_then(serde_json::Number::from_f64).map(Value::Number),
        _ => return Err(unsupported_tag(tag, place)),
    };
    value.ok_or_else(|| {
        ConfigError::new(format!("\"{text}\" does not fit its tag !!{}", name.unwrap_or_default())).at(place)
    })
}

fn collection_tag(tag: Option<&Tag>, expected: &str, place: Place) -> Result<(), ConfigError> {
    match tag {
        Some(tag) if core_tag(tag) != Some(expected) => Err(unsupported_tag(tag, place)),
        _ => Ok(()),
    }
}

fn core_tag(tag: &Tag) -> Option<&str> {
    (tag.handle() == "tag:yaml.org,2002:").then(|| tag.suffix())
}

fn unsupported_tag(tag: &Tag, place: Place) -> ConfigError {
    ConfigError::new(format!("the YAML tag {}{} is not supported", tag.handle(), tag.suffix())).at(place)
}
