//! What Envoy's messages ask of their own values: `validate.rules` of protoc-gen-validate in their definitions, which
//! Envoy checks of every message that it takes. They are read from the table of [`crate::schema`] and compared with the
//! encoded message, so that one place holds for every type, from a file or a control plane.

mod rules;
#[cfg(test)]
mod tests;

use std::sync::OnceLock;

use envoy_types::pb::google::protobuf::{Any, Duration};
use envoy_types::pb::validate::field_rules::Type as Rule;
use envoy_types::pb::validate::{FieldRules, MapRules, RepeatedRules};
use prost::{Message, Name};
use sixfold_core::error::ConfigError;

use crate::any::name_of_url;
use crate::schema::{Cardinality, FieldSchema, Kind, TypeSchema};
use crate::wire::{self, Value};

/// Faults of one message beyond this many are not listed.
const MAX_FAULTS: usize = 100;

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
    /// Names of oneofs of which a member must be given.
    required: Vec<&'static str>,
}

impl TypeRules {
    fn of(schema: TypeSchema) -> &'static TypeRules {
        static TYPES: OnceLock<Box<[OnceLock<TypeRules>]>> = OnceLock::new();
        let types = TYPES.get_or_init(|| (0..TypeSchema::count()).map(|_| OnceLock::new()).collect());
        static NONE: TypeRules = TypeRules { fields: Vec::new(), required: Vec::new() };
        types.get(schema.index()).map_or(&NONE, |rules| rules.get_or_init(|| TypeRules::read(schema)))
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
        TypeRules { fields, required }
    }
}

fn message(schema: TypeSchema, bytes: &[u8], depth: usize, faults: &mut Faults) {
    if depth > MAX_DEPTH {
        return;
    }
    if schema.name() == "google.protobuf.Any" {
        return any(bytes, depth, faults);
    }
    let types = TypeRules::of(schema);
    let mut seen = vec![0usize; types.fields.len()];
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
    for ((field, rules), seen) in types.fields.iter().zip(&seen) {
        let Some(rules) = rules else { continue };
        faults.within(|fault| fault.in_key(field.name), |faults| whole(field, rules, *seen, faults));
    }
    for oneof in &types.required {
        let is_given = |((field, _), seen): (&(FieldSchema, _), &usize)| field.oneof == *oneof && *seen > 0;
        if !types.fields.iter().zip(&seen).any(is_given) {
            faults.put(schema.missing_member(oneof));
        }
    }
}

/// The message in an `Any`, if its type is known.
fn any(bytes: &[u8], depth: usize, faults: &mut Faults) {
    let Ok(any) = Any::decode(bytes) else { return };
    if let Some(schema) = TypeSchema::message(name_of_url(&any.type_url)) {
        message(schema, &any.value, depth + 1, faults);
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
            let Some(inner) = schema.field_by_number(1) else { return };
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
    let (Some(key_field), Some(value_field)) = (entry.field_by_number(1), entry.field_by_number(2)) else {
        return;
    };
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
