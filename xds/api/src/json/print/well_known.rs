//! Messages whose JSON form is not that of their fields.

use std::io;

use super::pretty::Pretty;
use super::{REDACTED, View, fields, message, scalar};
use crate::any::name_of_url;
use crate::schema::{Cardinality, Kind, TypeSchema};
use crate::wire::{Fields, Value};

/// Shows the message if it has a form of its own, else `None`.
pub(super) fn show(
    out: &mut Pretty<'_>,
    schema: TypeSchema,
    encoded: &[u8],
    view: View<'_>,
) -> Option<io::Result<()>> {
    if schema.name() == "xds.type.v3.TypedStruct" {
        return Some(typed_struct(out, schema, encoded, view));
    }
    let shown = match schema.name().strip_prefix("google.protobuf.")? {
        "Any" => {
            let (url, value) = any_parts(encoded);
            show_any(out, url, value, view)
        }
        "Duration" => {
            let (seconds, nanos) = if view.hide { (0, 0) } else { seconds_and_nanos(encoded) };
            out.text(&duration(seconds, nanos))
        }
        "Timestamp" => {
            let (seconds, nanos) = seconds_and_nanos(encoded);
            out.text(&timestamp(seconds, nanos))
        }
        "Struct" => structure(out, encoded, Guide::None, view),
        "ListValue" => list(out, encoded, Guide::None, view),
        "Value" => json_value(out, encoded, Guide::None, view),
        "BoolValue" | "Int32Value" | "Int64Value" | "UInt32Value" | "UInt64Value" | "FloatValue"
        | "DoubleValue" | "StringValue" | "BytesValue" => wrapper(out, schema, encoded, view),
        _ => return None,
    };
    Some(shown)
}

/// An `Any`: its type beside the fields of what it holds, or beside `value` where that has a form of its own.
pub(super) fn show_any(out: &mut Pretty<'_>, url: &str, encoded: &[u8], view: View<'_>) -> io::Result<()> {
    out.open_object()?;
    if !url.is_empty() {
        out.key("@type")?;
        out.text(url)?;
    }
    match TypeSchema::message(name_of_url(url)) {
        Some(schema) if has_own_form(schema) => {
            out.key("value")?;
            message(out, schema, encoded, view.same(false))?;
        }
        Some(schema) if schema.name() == "xds.type.v3.TypedStruct" => {
            typed_fields(out, schema, encoded, view)?;
        }
        Some(schema) => fields(out, schema, encoded, view)?,
        // Nothing is known of it, and it may hold a secret.
        None => {}
    }
    out.close_object()
}

fn has_own_form(schema: TypeSchema) -> bool {
    schema.name().strip_prefix("google.protobuf.").is_some_and(|name| name != "Empty")
}

/// Type and content of an `Any`.
fn any_parts(encoded: &[u8]) -> (&str, &[u8]) {
    let (mut url, mut value) = ("", &[][..]);
    for (number, part) in Fields::of(encoded) {
        match number {
            1 => url = std::str::from_utf8(part.bytes()).unwrap_or_default(),
            2 => value = part.bytes(),
            _ => {}
        }
    }
    (url, value)
}

fn wrapper(out: &mut Pretty<'_>, schema: TypeSchema, encoded: &[u8], view: View<'_>) -> io::Result<()> {
    let Some(field) = schema.field_by_number(1) else { return out.empty() };
    let text = matches!(field.kind, Kind::String | Kind::Bytes);
    let found = Fields::of(encoded).filter(|(number, _)| *number == 1 && (text || !view.hide)).last();
    let value = found.map_or_else(|| Value::default_of(field.kind), |(_, value)| value);
    scalar(out, field.kind, value, view.hide)
}

fn seconds_and_nanos(encoded: &[u8]) -> (i64, i32) {
    let (mut seconds, mut nanos) = (0, 0);
    for (number, value) in Fields::of(encoded) {
        match number {
            1 => seconds = value.integer(Kind::Int64) as i64,
            2 => nanos = value.integer(Kind::Int32) as i32,
            _ => {}
        }
    }
    (seconds, nanos)
}

/// Decimals of a second: none, three, six or nine.
fn decimals(nanos: u32) -> String {
    match nanos {
        0 => String::new(),
        nanos if nanos.is_multiple_of(1_000_000) => format!(".{:03}", nanos / 1_000_000),
        nanos if nanos.is_multiple_of(1_000) => format!(".{:06}", nanos / 1_000),
        nanos => format!(".{nanos:09}"),
    }
}

/// `1.500s`, as JSON has it.
pub fn duration(seconds: i64, nanos: i32) -> String {
    let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
    format!("{sign}{}{}s", seconds.unsigned_abs(), decimals(nanos.unsigned_abs()))
}

/// `2030-01-31T12:00:00.500Z`, as JSON has it; a time of the years 1 to 9999.
pub fn timestamp(seconds: i64, nanos: i32) -> String {
    let (year, month, day) = civil_from_days(seconds.div_euclid(86_400));
    let time = seconds.rem_euclid(86_400);
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    let decimals = decimals(nanos.unsigned_abs());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{decimals}Z")
}

/// Year, month and day of a day since 1970-01-01, counted in eras of 400 years that begin in March.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    // No clock is beyond this, and nothing overflows below it.
    let days = days.clamp(-719_162, 2_932_896) + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let (day, month) = (day_of_year - (153 * shifted + 2) / 5 + 1, (shifted + 2) % 12 + 1);
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

/// What the members of a struct stand for, where that is known: fields of a message, or entries of a map.
#[derive(Clone, Copy)]
enum Guide {
    None,
    Message(TypeSchema),
    Map(Kind),
}

impl Guide {
    /// What a member is, and whether it is a secret. `url` is the type that the struct names for one of its members.
    fn member(self, name: &str, url: Option<&str>) -> (Guide, bool) {
        let held = || url.and_then(|url| TypeSchema::message(name_of_url(url)));
        let of = |kind| match kind {
            Kind::Message(schema) => Guide::Message(schema),
            _ => Guide::None,
        };
        match self {
            Guide::None => (Guide::None, false),
            Guide::Map(kind) => (of(kind), false),
            Guide::Message(schema) => match schema.name() {
                "google.protobuf.Any" => match held() {
                    Some(held) if name == "value" && has_own_form(held) => (Guide::Message(held), false),
                    Some(held) => Guide::Message(held).member(name, None),
                    None => (Guide::None, false),
                },
                "xds.type.v3.TypedStruct" if name == "value" => {
                    (held().map_or(Guide::None, Guide::Message), false)
                }
                _ => match schema.field(name) {
                    Some(field) => match (field.cardinality, field.kind) {
                        (Cardinality::Map, Kind::Message(entry)) => {
                            let kind = entry.field_by_number(2).map(|field| field.kind);
                            (kind.map_or(Guide::None, Guide::Map), field.sensitive)
                        }
                        (_, kind) => (of(kind), field.sensitive),
                    },
                    None => (Guide::None, false),
                },
            },
        }
    }

    /// The member in which a struct names the type of what it holds.
    fn names_type_in(self) -> Option<&'static [&'static str]> {
        match self {
            Guide::Message(schema) if schema.name() == "google.protobuf.Any" => Some(&["@type"]),
            Guide::Message(schema) if schema.name() == "xds.type.v3.TypedStruct" => {
                Some(&["type_url", "typeUrl"])
            }
            _ => None,
        }
    }
}

fn typed_struct(out: &mut Pretty<'_>, schema: TypeSchema, encoded: &[u8], view: View<'_>) -> io::Result<()> {
    out.open_object()?;
    typed_fields(out, schema, encoded, view)?;
    out.close_object()
}

/// The fields of a `TypedStruct`, whose content has secrets where the message has them that it stands for.
fn typed_fields(out: &mut Pretty<'_>, schema: TypeSchema, encoded: &[u8], view: View<'_>) -> io::Result<()> {
    let (url, value) = any_parts(encoded);
    if !url.is_empty() && view.shows("type_url") {
        out.key("type_url")?;
        out.text(url)?;
    }
    let given = Fields::of(encoded).any(|(number, _)| number == 2);
    if given && view.shows("value") {
        out.key("value")?;
        let (guide, _) = Guide::Message(schema).member("value", Some(url));
        structure(out, value, guide, view.same(false))?;
    }
    Ok(())
}

/// Members of a struct in their order; of two of one name the last counts.
fn members(encoded: &[u8]) -> Vec<(&str, &[u8])> {
    let mut members: Vec<(&str, &[u8])> = Vec::new();
    for (_, entry) in Fields::of(encoded).filter(|(number, _)| *number == 1) {
        let (name, value) = any_parts(entry.bytes());
        match members.iter_mut().find(|(known, _)| *known == name) {
            Some(known) => known.1 = value,
            None => members.push((name, value)),
        }
    }
    members
}

fn structure(out: &mut Pretty<'_>, encoded: &[u8], guide: Guide, view: View<'_>) -> io::Result<()> {
    let members = members(encoded);
    let text = |name: &str| {
        let (_, value) = members.iter().find(|(known, _)| *known == name)?;
        let (_, text) = Fields::of(value).find(|(number, _)| *number == 3)?;
        std::str::from_utf8(text.bytes()).ok()
    };
    let naming = guide.names_type_in().unwrap_or_default();
    let url = naming.iter().find_map(|name| text(name));
    out.open_object()?;
    for (name, value) in &members {
        let (guide, hide) = guide.member(name, url);
        out.key(name)?;
        if naming.contains(name) {
            out.text(url.unwrap_or_default())?;
        } else {
            json_value(out, value, guide, view.same(hide))?;
        }
    }
    out.close_object()
}

fn list(out: &mut Pretty<'_>, encoded: &[u8], guide: Guide, view: View<'_>) -> io::Result<()> {
    out.open_array()?;
    for (_, item) in Fields::of(encoded).filter(|(number, _)| *number == 1) {
        out.item()?;
        json_value(out, item.bytes(), guide, view.same(false))?;
    }
    out.close_array()
}

/// A `google.protobuf.Value`.
fn json_value(out: &mut Pretty<'_>, encoded: &[u8], guide: Guide, view: View<'_>) -> io::Result<()> {
    if view.is_too_deep() {
        return out.bare("null");
    }
    match Fields::of(encoded).last() {
        Some((2, value)) if !view.hide => out.double(value.float()),
        Some((3, _)) if view.hide => out.text(REDACTED),
        Some((3, value)) => out.text(&String::from_utf8_lossy(value.bytes())),
        Some((4, value)) if !view.hide => out.bare(value.integer(Kind::Bool) != 0),
        Some((5, value)) => structure(out, value.bytes(), guide, view),
        Some((6, value)) => list(out, value.bytes(), guide, view),
        _ => out.bare("null"),
    }
}
