//! One value against its `validate.rules` (protoc-gen-validate's validate.proto), with words for what it breaks.

use std::fmt::Display;

use envoy_types::pb::google::protobuf::Duration;
use envoy_types::pb::validate::field_rules::Type as Rule;
use envoy_types::pb::validate::string_rules::WellKnown;
use envoy_types::pb::validate::{BytesRules, DurationRules, EnumRules, KnownRegex, StringRules};

use crate::schema::{Kind, TypeSchema};
use crate::wire::Value;

/// What is wrong with a value that is no message, if anything.
pub(super) fn scalar(rule: &Rule, kind: Kind, value: Value<'_>) -> Option<String> {
    // All numeric rules have the same fields, each in its own type.
    macro_rules! numbers {
        ($rules:expr, $value:expr, $wide:ty) => {{
            let value: $wide = $value;
            let rules = $rules;
            let wide = |bound: Option<_>| bound.map(<$wide>::from);
            let zero = value == <$wide>::default();
            if rules.ignore_empty() && zero {
                return None;
            }
            let listed = |list: &[_]| list.iter().any(|other| <$wide>::from(*other) == value);
            range(&value, wide(rules.gt), wide(rules.gte), wide(rules.lt), wide(rules.lte))
                .or_else(|| constant(&value, wide(rules.r#const).as_ref()))
                .or_else(|| one_of(&value, rules.r#in.is_empty() || listed(&rules.r#in), &rules.r#in))
                .or_else(|| listed(&rules.not_in).then(|| format!("must not be {value}")))
        }};
    }
    match rule {
        Rule::Float(rules) => numbers!(rules, value.float(), f64),
        Rule::Double(rules) => numbers!(rules, value.float(), f64),
        Rule::Int32(rules) => numbers!(rules, value.integer(kind), i128),
        Rule::Int64(rules) => numbers!(rules, value.integer(kind), i128),
        Rule::Uint32(rules) => numbers!(rules, value.integer(kind), i128),
        Rule::Uint64(rules) => numbers!(rules, value.integer(kind), i128),
        Rule::Sint32(rules) => numbers!(rules, value.integer(kind), i128),
        Rule::Sint64(rules) => numbers!(rules, value.integer(kind), i128),
        Rule::Fixed32(rules) => numbers!(rules, value.integer(kind), i128),
        Rule::Fixed64(rules) => numbers!(rules, value.integer(kind), i128),
        Rule::Sfixed32(rules) => numbers!(rules, value.integer(kind), i128),
        Rule::Sfixed64(rules) => numbers!(rules, value.integer(kind), i128),
        Rule::Bool(rules) => constant(&(value.integer(kind) != 0), rules.r#const.as_ref()),
        Rule::String(rules) => string(rules, value.bytes()),
        Rule::Bytes(rules) => bytes(rules, value.bytes()),
        Rule::Enum(rules) => match kind {
            Kind::Enum(schema) => enum_value(rules, schema, value.integer(kind)),
            _ => None,
        },
        Rule::Repeated(_) | Rule::Map(_) | Rule::Any(_) | Rule::Duration(_) | Rule::Timestamp(_) => None,
    }
}

fn range<T: PartialOrd + Display>(
    value: &T,
    gt: Option<T>,
    gte: Option<T>,
    lt: Option<T>,
    lte: Option<T>,
) -> Option<String> {
    let broken = |bound: Option<T>, fits: fn(&T, &T) -> bool, words: &str| {
        let bound = bound.filter(|bound| !fits(value, bound))?;
        Some(format!("must be {words} {bound}, not {value}"))
    };
    broken(gt, |value, bound| value > bound, "more than")
        .or_else(|| broken(gte, |value, bound| value >= bound, "at least"))
        .or_else(|| broken(lt, |value, bound| value < bound, "less than"))
        .or_else(|| broken(lte, |value, bound| value <= bound, "at most"))
}

fn constant<T: PartialEq + Display>(value: &T, wanted: Option<&T>) -> Option<String> {
    let wanted = wanted.filter(|wanted| *wanted != value)?;
    Some(format!("must be {wanted}, not {value}"))
}

fn one_of<T: Display>(value: impl Display, fits: bool, list: &[T]) -> Option<String> {
    let names = || list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    (!fits).then(|| format!("must be one of {}, not {value}", names()))
}

fn length(
    found: usize,
    unit: &str,
    exact: Option<u64>,
    min: Option<u64>,
    max: Option<u64>,
) -> Option<String> {
    let found = found as u64;
    let ones = |count: u64| if count == 1 { "" } else { "s" };
    if let Some(exact) = exact.filter(|exact| *exact != found) {
        return Some(format!("must have {exact} {unit}{}, not {found}", ones(exact)));
    }
    if let Some(min) = min.filter(|min| found < *min) {
        let empty = min == 1 && found == 0;
        return Some(match empty {
            true => "must not be empty".to_owned(),
            false => format!("must have at least {min} {unit}{}, not {found}", ones(min)),
        });
    }
    let max = max.filter(|max| found > *max)?;
    Some(format!("must have at most {max} {unit}{}, not {found}", ones(max)))
}

/// A text in quotes, made only where it is told: most values are as they must be.
struct Quoted<'a>(&'a str);

impl Display for Quoted<'_> {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "\"{}\"", self.0.escape_debug())
    }
}

fn string(rules: &StringRules, value: &[u8]) -> Option<String> {
    if rules.ignore_empty() && value.is_empty() {
        return None;
    }
    // Whether it is UTF-8 is the decoder's business.
    let text = String::from_utf8_lossy(value);
    let shown = Quoted(&text);
    let begins =
        |prefix: &Option<String>| prefix.as_ref().is_none_or(|prefix| text.starts_with(prefix.as_str()));
    let ends = |suffix: &Option<String>| suffix.as_ref().is_none_or(|suffix| text.ends_with(suffix.as_str()));
    let named = |list: &[String]| list.iter().any(|other| *other == text);
    let bounds = [rules.len, rules.min_len, rules.max_len];
    // Most names must be there, and that is all that is asked of their length.
    let characters = match bounds {
        [None, None, None] => 0,
        [None, Some(1), None] => text.len().min(1),
        _ => text.chars().count(),
    };
    length(characters, "character", rules.len, rules.min_len, rules.max_len)
        .or_else(|| length(value.len(), "byte", rules.len_bytes, rules.min_bytes, rules.max_bytes))
        .or_else(|| constant(&text.as_ref(), rules.r#const.as_deref().as_ref()))
        .or_else(|| {
            (!begins(&rules.prefix))
                .then(|| format!("must begin with \"{}\", not be {shown}", rules.prefix()))
        })
        .or_else(|| {
            (!ends(&rules.suffix)).then(|| format!("must end with \"{}\", not be {shown}", rules.suffix()))
        })
        .or_else(|| {
            let lacks = rules.contains.as_ref().is_some_and(|part| !text.contains(part.as_str()));
            lacks.then(|| format!("must contain \"{}\"", rules.contains()))
        })
        .or_else(|| {
            let has = rules.not_contains.as_ref().is_some_and(|part| text.contains(part.as_str()));
            has.then(|| format!("must not contain \"{}\"", rules.not_contains()))
        })
        .or_else(|| one_of(&shown, rules.r#in.is_empty() || named(&rules.r#in), &rules.r#in))
        .or_else(|| named(&rules.not_in).then(|| format!("must not be {shown}")))
        .or_else(|| known_form(rules, value).map(|words| format!("{shown} {words}")))
        .or_else(|| pattern(rules.pattern.as_deref()?, &text))
}

/// The forms that Envoy asks for: what may stand in a header.
fn known_form(rules: &StringRules, value: &[u8]) -> Option<&'static str> {
    let Some(WellKnown::WellKnownRegex(form)) = rules.well_known else { return None };
    let form = KnownRegex::try_from(form).unwrap_or(KnownRegex::Unknown);
    if !rules.strict() {
        return value
            .iter()
            .any(|byte| matches!(byte, 0 | b'\n' | b'\r'))
            .then_some("holds a NUL or a line break");
    }
    match form {
        KnownRegex::HttpHeaderName => {
            let name = value.strip_prefix(b":").unwrap_or(value);
            let fits = !name.is_empty() && name.iter().all(|byte| is_token(*byte));
            (!fits).then_some("is no header name")
        }
        KnownRegex::HttpHeaderValue => {
            let fits = value.iter().all(|byte| !matches!(byte, 0..=8 | 10..=31 | 127));
            (!fits).then_some("holds control characters")
        }
        KnownRegex::Unknown => None,
    }
}

/// RFC 9110, 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_|~`".contains(&byte)
}

fn pattern(pattern: &str, text: &str) -> Option<String> {
    // The patterns are Envoy's own; one that could not be read would refuse nothing.
    let regex = sixfold_core::regex::Regex::search(pattern).ok()?;
    (!regex.is_match(text.as_bytes())).then(|| format!("{} does not match \"{pattern}\"", Quoted(text)))
}

fn bytes(rules: &BytesRules, value: &[u8]) -> Option<String> {
    if rules.ignore_empty() && value.is_empty() {
        return None;
    }
    length(value.len(), "byte", rules.len, rules.min_len, rules.max_len)
}

fn enum_value(rules: &EnumRules, schema: TypeSchema, value: i128) -> Option<String> {
    let name = |number: i128| {
        let found = schema.values().find(|(_, other)| i128::from(*other) == number);
        found.map_or_else(|| number.to_string(), |(name, _)| name.to_owned())
    };
    let listed = |list: &[i32]| list.iter().any(|other| i128::from(*other) == value);
    if rules.defined_only() && !schema.values().any(|(_, number)| i128::from(number) == value) {
        let names: Vec<&str> = schema.values().map(|(name, _)| name).collect();
        return Some(format!(
            "{value} is no value of {}; expected one of {}",
            schema.name(),
            names.join(", ")
        ));
    }
    if rules.r#const.is_some_and(|wanted| i128::from(wanted) != value)
        || !(rules.r#in.is_empty() || listed(&rules.r#in))
        || listed(&rules.not_in)
    {
        return Some(format!("must not be {}", name(value)));
    }
    None
}

/// What is wrong with a duration, given as its encoded message.
pub(super) fn duration(rules: &DurationRules, seconds: i64, nanos: i32) -> Option<String> {
    let found = Seconds(i128::from(seconds) * 1_000_000_000 + i128::from(nanos));
    let bound = |bound: &Option<Duration>| {
        bound
            .as_ref()
            .map(|bound| Seconds(i128::from(bound.seconds) * 1_000_000_000 + i128::from(bound.nanos)))
    };
    range(&found, bound(&rules.gt), bound(&rules.gte), bound(&rules.lt), bound(&rules.lte))
}

/// Nanoseconds, shown as seconds in the JSON form.
#[derive(PartialEq, PartialOrd)]
struct Seconds(i128);

impl Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}s", self.0 as f64 / 1e9)
    }
}

/// What is wrong with the number of items of a list or map.
pub(super) fn count(found: usize, min: Option<u64>, max: Option<u64>) -> Option<String> {
    length(found, "item", None, min, max)
}
