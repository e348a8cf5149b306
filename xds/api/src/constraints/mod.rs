//! What Envoy's messages ask of their own values: `validate.rules` of protoc-gen-validate in their definitions, which
//! Envoy checks of every message that it takes. They are read from the table of [`crate::schema`] and compared with the
//! encoded message, so that one place holds for every type, from a file or a control plane.

mod rules;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::OnceLock;

use envoy_types::pb::google::protobuf::Duration;
use envoy_types::pb::validate::field_rules::Type as Rule;
use envoy_types::pb::validate::{FieldRules, MapRules, RepeatedRules};
use prost::{Message, Name};
use sixfold_core::error::ConfigError;

use crate::any::name_of_url;
use crate::schema::{Cardinality, FieldSchema, Kind, TypeSchema};
use crate::wire::{self, Value};

/// Faults of one message beyond this many are not listed.
const MAX_FAULTS: usize = 100;

/// Fields of a message that are counted without asking for memory.
const FEW_FIELDS: usize = 64;

/// How deep messages may be nested; prost decodes no deeper.
const MAX_DEPTH: usize = 100;

/// Every value in the encoded message `full_name` that breaks a rule of its definition, with the path of its field;
/// at most a hundred. What stands in an `Any` of a known type is looked at too. Bytes that are no message of that
/// type, and types that are not known, have no faults here: decoding tells.
pub fn faults(full_name: &str, bytes: &[u8]) -> Vec<ConfigError> {
    let mut faults = Faults(Vec::new());
    if let Some(schema) = TypeSchema::message(full_name) {
        message(schema, bytes, 0, &mut faults);
    }
    faults.0
}

/// The first of [`faults`].
///
/// # Errors
/// A value that breaks a rule of its definition.
pub fn check(full_name: &str, bytes: &[u8]) -> Result<(), ConfigError> {
    faults(full_name, bytes).into_iter().next().map_or(Ok(()), Err)
}

/// Decodes a message whose values keep the rules of its definition.
///
/// # Errors
/// Bytes that are no such message, and what [`check`] finds.
pub fn decode<M: Message + Default + Name>(bytes: &[u8]) -> Result<M, ConfigError> {
    let message = wire::decode(bytes)?;
    check(&M::full_name(), bytes)?;
    Ok(message)
}

struct Faults(Vec<ConfigError>);

impl Faults {
    fn add(&mut self, reason: Option<String>) {
        if let Some(reason) = reason {
            self.put(ConfigError::new(reason));
        }
    }

    fn put(&mut self, fault: ConfigError) {
        if self.0.len() < MAX_FAULTS {
            self.0.push(fault);
        }
    }

    /// Puts what `find` finds under `place`.
    fn within(&mut self, place: impl Fn(ConfigError) -> ConfigError, find: impl FnOnce(&mut Faults)) {
        let before = self.0.len();
        find(self);
        for fault in self.0.iter_mut().skip(before) {
            *fault = place(std::mem::replace(fault, ConfigError::new("")));
        }
    }
}

/// A type with its rules decoded: they are asked for every message of it.
struct TypeRules {
    /// By number.
    fields: Vec<(FieldSchema, Option<FieldRules>)>,
    /// Places of those that are looked at as a whole.
    ruled: Vec<usize>,
    /// Names of oneofs of which a member must be given.
    required: Vec<&'static str>,
    /// Whether it is an `Any`.
    is_any: bool,
    /// Whether neither it nor what it is made of has a rule: what is in it is not looked at.
    is_free: bool,
}

impl TypeRules {
    fn of(schema: TypeSchema) -> &'static TypeRules {
        static TYPES: OnceLock<Box<[OnceLock<TypeRules>]>> = OnceLock::new();
        let types = TYPES.get_or_init(|| (0..TypeSchema::count()).map(|_| OnceLock::new()).collect());
        static NONE: TypeRules = TypeRules {
            fields: Vec::new(),
            ruled: Vec::new(),
            required: Vec::new(),
            is_any: false,
            is_free: true,
        };
        types.get(schema.index()).map_or(&NONE, |rules| rules.get_or_init(|| TypeRules::read(schema)))
    }

    fn field(&self, number: u32) -> Option<&FieldSchema> {
        let index = self.fields.binary_search_by_key(&number, |(field, _)| field.number).ok()?;
        self.fields.get(index).map(|(field, _)| field)
    }

    fn read(schema: TypeSchema) -> TypeRules {
        let rules = |field: FieldSchema| {
            let encoded = Some(field.rules).filter(|rules| !rules.is_empty())?;
            FieldRules::decode(encoded).ok()
        };
        let mut fields: Vec<_> = schema.fields().map(|field| (field, rules(field))).collect();
        fields.sort_by_key(|(field, _)| field.number);
        let mut required: Vec<_> =
            fields.iter().filter(|(field, _)| field.oneof_required).map(|(field, _)| field.oneof).collect();
        required.dedup();
        let ruled = fields.iter().enumerate().filter(|(_, (_, rules))| rules.is_some());
        let ruled = ruled.map(|(index, _)| index).collect();
        let is_free = !has_rules(schema, &mut BTreeSet::new());
        TypeRules { fields, ruled, required, is_any: is_any(schema), is_free }
    }
}

fn is_any(schema: TypeSchema) -> bool {
    schema.name() == "google.protobuf.Any"
}

/// Whether there is a rule in a type, or in one that it is made of and that is not among those `seen`.
fn has_rules(schema: TypeSchema, seen: &mut BTreeSet<usize>) -> bool {
    if !seen.insert(schema.index()) {
        return false;
    }
    is_any(schema)
        || schema.fields().any(|field| {
            let of_kind = match field.kind {
                Kind::Message(inner) => has_rules(inner, seen),
                _ => false,
            };
            !field.rules.is_empty() || field.oneof_required || of_kind
        })
}

fn message(schema: TypeSchema, bytes: &[u8], depth: usize, faults: &mut Faults) {
    if depth > MAX_DEPTH {
        return;
    }
    let types = TypeRules::of(schema);
    if types.is_any {
        return any(bytes, depth, faults);
    }
    if types.is_free {
        return;
    }
    let (mut few, mut many) = ([0usize; FEW_FIELDS], Vec::new());
    let seen = match few.get_mut(..types.fields.len()) {
        Some(few) => few,
        None => {
            many.resize(types.fields.len(), 0);
            many.as_mut_slice()
        }
    };
    for (number, value) in wire::Fields::of(bytes) {
        let Ok(index) = types.fields.binary_search_by_key(&number, |(field, _)| field.number) else {
            continue;
        };
        let (Some((field, rules)), Some(seen)) = (types.fields.get(index), seen.get_mut(index)) else {
            continue;
        };
        faults.within(
            |fault| fault.in_key(field.name),
            |faults| *seen += given(field, rules.as_ref(), value, *seen, depth, faults),
        );
    }
    for index in &types.ruled {
        let (Some((field, Some(rules))), Some(seen)) = (types.fields.get(*index), seen.get(*index)) else {
            continue;
        };
        faults.within(|fault| fault.in_key(field.name), |faults| whole(field, rules, *seen, faults));
    }
    for oneof in &types.required {
        let is_given = |((field, _), seen): (&(FieldSchema, _), &usize)| field.oneof == *oneof && *seen > 0;
        if !types.fields.iter().zip(&*seen).any(is_given) {
            faults.put(schema.missing_member(oneof));
        }
    }
}

/// The message in an `Any`, if its type is known.
fn any(bytes: &[u8], depth: usize, faults: &mut Faults) {
    let (mut type_url, mut content) = ("", &[][..]);
    for (number, value) in wire::Fields::of(bytes) {
        match number {
            1 => type_url = std::str::from_utf8(value.bytes()).unwrap_or_default(),
            2 => content = value.bytes(),
            _ => {}
        }
    }
    if let Some(schema) = TypeSchema::message(name_of_url(type_url)) {
        message(schema, content, depth + 1, faults);
    }
}

/// Looks at a value that is there; returns how many of the field it is.
fn given(
    field: &FieldSchema,
    rules: Option<&FieldRules>,
    value: Value<'_>,
    before: usize,
    depth: usize,
    faults: &mut Faults,
) -> usize {
    match field.cardinality {
        Cardinality::Single => {
            single(field.kind, rules, value, depth, faults);
            1
        }
        Cardinality::Map => {
            let rules = match rules.and_then(|rules| rules.r#type.as_ref()) {
                Some(Rule::Map(rules)) => Some(rules.as_ref()),
                _ => None,
            };
            map_entry(field, rules, value, depth, faults);
            1
        }
        Cardinality::Repeated => {
            let rules = match rules.and_then(|rules| rules.r#type.as_ref()) {
                Some(Rule::Repeated(rules)) => rules.items.as_deref(),
                _ => None,
            };
            let mut count = 0;
            for item in value.items(field.kind) {
                faults.within(
                    |fault| fault.in_index(before + count),
                    |faults| single(field.kind, rules, item, depth, faults),
                );
                count += 1;
            }
            count
        }
    }
}

fn single(kind: Kind, rules: Option<&FieldRules>, value: Value<'_>, depth: usize, faults: &mut Faults) {
    let rule = rules.and_then(|rules| rules.r#type.as_ref());
    let Kind::Message(schema) = kind else {
        return faults.add(rule.and_then(|rule| rules::scalar(rule, kind, value)));
    };
    match rule {
        Some(Rule::Duration(rules)) => {
            let found = Duration::decode(value.bytes()).unwrap_or_default();
            return faults.add(rules::duration(rules, found.seconds, found.nanos));
        }
        Some(Rule::Any(_) | Rule::Timestamp(_) | Rule::Repeated(_) | Rule::Map(_)) | None => {}
        // The rules of a wrapper are those of its value.
        Some(rule) => {
            let Some(inner) = TypeRules::of(schema).field(1) else { return };
            let found = wire::Fields::of(value.bytes()).filter(|(number, _)| *number == 1).last();
            let found = found.map_or(Value::default_of(inner.kind), |(_, value)| value);
            return faults.add(rules::scalar(rule, inner.kind, found));
        }
    }
    let skipped = rules.and_then(|rules| rules.message.as_ref()).is_some_and(|rules| rules.skip());
    if !skipped {
        message(schema, value.bytes(), depth + 1, faults);
    }
}

fn map_entry(
    field: &FieldSchema,
    rules: Option<&MapRules>,
    value: Value<'_>,
    depth: usize,
    faults: &mut Faults,
) {
    let Kind::Message(entry) = field.kind else { return };
    let entry = TypeRules::of(entry);
    let (Some(key_field), Some(value_field)) = (entry.field(1), entry.field(2)) else { return };
    let (mut key, mut inner) = (Value::default_of(key_field.kind), Value::default_of(value_field.kind));
    for (number, found) in wire::Fields::of(value.bytes()) {
        match number {
            1 => key = found,
            2 => inner = found,
            _ => {}
        }
    }
    let name = match key_field.kind {
        Kind::String => String::from_utf8_lossy(key.bytes()).into_owned(),
        kind => key.integer(kind).to_string(),
    };
    faults.within(
        |fault| fault.in_key(&name),
        |faults| {
            single(key_field.kind, rules.and_then(|rules| rules.keys.as_deref()), key, depth, faults);
            single(value_field.kind, rules.and_then(|rules| rules.values.as_deref()), inner, depth, faults);
        },
    );
}

/// Looks at what can be told only of the whole field: that it is missing, and how many it has.
fn whole(field: &FieldSchema, rules: &FieldRules, seen: usize, faults: &mut Faults) {
    let missing = || Some("is missing".to_owned());
    match (&rules.r#type, field.cardinality) {
        (Some(Rule::Repeated(rules)), Cardinality::Repeated) => {
            let RepeatedRules { min_items, max_items, ignore_empty, .. } = **rules;
            if !(ignore_empty == Some(true) && seen == 0) {
                faults.add(rules::count(seen, min_items, max_items));
            }
        }
        (Some(Rule::Map(rules)), Cardinality::Map) => {
            let MapRules { min_pairs, max_pairs, ignore_empty, .. } = **rules;
            if !(ignore_empty == Some(true) && seen == 0) {
                faults.add(rules::count(seen, min_pairs, max_pairs));
            }
        }
        // What is not given in a oneof is not asked for.
        (rule, Cardinality::Single) if seen == 0 && field.oneof.is_empty() => match field.kind {
            Kind::Message(_) => {
                let required = match rule {
                    Some(Rule::Any(rules)) => rules.required(),
                    Some(Rule::Duration(rules)) => rules.required(),
                    Some(Rule::Timestamp(rules)) => rules.required(),
                    _ => false,
                };
                if required || rules.message.as_ref().is_some_and(|rules| rules.required()) {
                    faults.add(missing());
                }
            }
            // A value that is not written is the type's default, and its rules hold for that.
            kind if !field.optional => {
                faults.add(rule.as_ref().and_then(|rule| rules::scalar(rule, kind, Value::default_of(kind))));
            }
            _ => {}
        },
        _ => {}
    }
}
