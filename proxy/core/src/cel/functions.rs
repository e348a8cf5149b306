//! The functions of the language, operators among them.

use super::ast::MAX_PARTS;
use super::compile::list;
use super::time;
use super::value::{Evaluated, Value};
use super::{Extras, Fault};
use crate::regex::Regex;
use std::borrow::Cow;
use std::cmp::Ordering;

/// Bytes of a text that is made here, at most.
const MAX_TEXT: usize = 1 << 20;

/// Bytes of a pattern that a request brings, at most: Envoy's limit for programs is about as small.
const MAX_PATTERN: usize = 64;

/// A function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    Add,
    /// The same, of texts and bytes too.
    AddTexts,
    Bool,
    Bytes,
    Contains,
    Divide,
    Double,
    Duration,
    EndsWith,
    Equal,
    Greater,
    GreaterOrEqual,
    In,
    Int,
    Less,
    LessOrEqual,
    LowerAscii,
    /// With a pattern that is not known before.
    Matches,
    Multiply,
    Negate,
    Not,
    NotEqual,
    Part(Part),
    Remainder,
    Replace,
    Size,
    Split,
    StartsWith,
    String,
    Subtract,
    Timestamp,
    Type,
    Uint,
    UpperAscii,
}

/// A part of a time or a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    FullYear,
    Month,
    /// Of the month, from 1.
    Date,
    /// Of the month, from 0.
    DayOfMonth,
    /// From Sunday, 0.
    DayOfWeek,
    /// From 0.
    DayOfYear,
    Hours,
    Minutes,
    Seconds,
    Milliseconds,
}

/// How a function is called.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    /// `f(a)`
    Global,
    /// `a.f()`
    Member,
    Both,
}

/// Names, how they are called, and with how many arguments, what they are called on among them.
const FUNCTIONS: [(&str, Style, usize, usize, Function); 44] = [
    ("!_", Style::Global, 1, 1, Function::Not),
    ("-_", Style::Global, 1, 1, Function::Negate),
    ("_==_", Style::Global, 2, 2, Function::Equal),
    ("_!=_", Style::Global, 2, 2, Function::NotEqual),
    ("_<_", Style::Global, 2, 2, Function::Less),
    ("_<=_", Style::Global, 2, 2, Function::LessOrEqual),
    ("_>_", Style::Global, 2, 2, Function::Greater),
    ("_>=_", Style::Global, 2, 2, Function::GreaterOrEqual),
    ("_+_", Style::Global, 2, 2, Function::Add),
    ("_-_", Style::Global, 2, 2, Function::Subtract),
    ("_*_", Style::Global, 2, 2, Function::Multiply),
    ("_/_", Style::Global, 2, 2, Function::Divide),
    ("_%_", Style::Global, 2, 2, Function::Remainder),
    ("@in", Style::Global, 2, 2, Function::In),
    ("_in_", Style::Global, 2, 2, Function::In),
    ("in", Style::Global, 2, 2, Function::In),
    ("size", Style::Both, 1, 1, Function::Size),
    ("contains", Style::Member, 2, 2, Function::Contains),
    ("startsWith", Style::Member, 2, 2, Function::StartsWith),
    ("endsWith", Style::Member, 2, 2, Function::EndsWith),
    ("int", Style::Global, 1, 1, Function::Int),
    ("uint", Style::Global, 1, 1, Function::Uint),
    ("double", Style::Global, 1, 1, Function::Double),
    ("string", Style::Global, 1, 1, Function::String),
    ("bytes", Style::Global, 1, 1, Function::Bytes),
    ("type", Style::Global, 1, 1, Function::Type),
    ("timestamp", Style::Global, 1, 1, Function::Timestamp),
    ("duration", Style::Global, 1, 1, Function::Duration),
    ("replace", Style::Member, 3, 4, Function::Replace),
    ("split", Style::Member, 2, 3, Function::Split),
    ("lowerAscii", Style::Member, 1, 1, Function::LowerAscii),
    ("upperAscii", Style::Member, 1, 1, Function::UpperAscii),
    ("getFullYear", Style::Member, 1, 2, Function::Part(Part::FullYear)),
    ("getMonth", Style::Member, 1, 2, Function::Part(Part::Month)),
    ("getDate", Style::Member, 1, 2, Function::Part(Part::Date)),
    ("getDayOfMonth", Style::Member, 1, 2, Function::Part(Part::DayOfMonth)),
    ("getDayOfWeek", Style::Member, 1, 2, Function::Part(Part::DayOfWeek)),
    ("getDayOfYear", Style::Member, 1, 2, Function::Part(Part::DayOfYear)),
    ("getHours", Style::Member, 1, 2, Function::Part(Part::Hours)),
    ("getMinutes", Style::Member, 1, 2, Function::Part(Part::Minutes)),
    ("getSeconds", Style::Member, 1, 2, Function::Part(Part::Seconds)),
    ("getMilliseconds", Style::Member, 1, 2, Function::Part(Part::Milliseconds)),
    ("bool", Style::Global, 1, 1, Function::Bool),
    ("matches", Style::Both, 2, 2, Function::Matches),
];

impl Function {
    /// The function of a name.
    ///
    /// # Errors
    /// There is none, it takes another number of arguments, or it has to be asked for.
    pub(super) fn find(name: &str, member: bool, count: usize, extras: Extras) -> Result<Function, String> {
        let wrong = if member { Style::Global } else { Style::Member };
        let known = FUNCTIONS.iter().find(|(known, style, ..)| *known == name && *style != wrong);
        let Some((_, _, least, most, function)) = known else {
            return Err(format!("there is no function {name}()"));
        };
        if !(*least..=*most).contains(&count) {
            let given = count - usize::from(member);
            return Err(format!("{name}() does not take {given} arguments"));
        }
        let asked = match function {
            Function::Add if extras.string_concat => return Ok(Function::AddTexts),
            Function::String => ("enable_string_conversion", extras.string_conversion),
            Function::Replace | Function::Split | Function::LowerAscii | Function::UpperAscii => {
                ("enable_string_functions", extras.string_functions)
            }
            _ => ("", true),
        };
        match asked {
            (_, true) => Ok(*function),
            (field, false) => Err(format!("{name}() has to be enabled by {field}")),
        }
    }
}

/// What a function gives.
pub(super) fn call<'a>(function: Function, args: &[Value<'a>]) -> Evaluated<'a> {
    match (function, args) {
        (Function::Equal, [one, other]) => Ok(Value::Bool(one.equals(other))),
        (Function::NotEqual, [one, other]) => Ok(Value::Bool(!one.equals(other))),
        (Function::Less, [one, other]) => order(one, other, Ordering::is_lt),
        (Function::LessOrEqual, [one, other]) => order(one, other, Ordering::is_le),
        (Function::Greater, [one, other]) => order(one, other, Ordering::is_gt),
        (Function::GreaterOrEqual, [one, other]) => order(one, other, Ordering::is_ge),
        (Function::Not, [Value::Bool(value)]) => Ok(Value::Bool(!value)),
        (Function::Negate, [value]) => negate(value),
        (Function::In, [value, Value::List(values)]) => {
            let any = (0..values.len()).filter_map(|at| values.get(at)).any(|own| own.equals(value));
            Ok(Value::Bool(any))
        }
        (Function::In, [key, Value::Map(map)]) => Ok(Value::Bool(map.get(key).is_ok())),
        (Function::Size, [value]) => size(value),
        (
            Function::Contains | Function::StartsWith | Function::EndsWith,
            [Value::String(text), Value::String(part)],
        ) => Ok(Value::Bool(match function {
            Function::Contains => memchr::memmem::find(text, part).is_some(),
            Function::StartsWith => text.starts_with(part),
            _ => text.ends_with(part),
        })),
        (Function::Int | Function::Uint | Function::Double, [value]) => number(function, value),
        (Function::String, [value]) => string(value),
        (Function::Bool, [value]) => truth(value),
        (Function::Matches, [Value::String(text), Value::String(pattern)]) => matches(text, pattern),
        (Function::Bytes, [Value::String(text) | Value::Bytes(text)]) => Ok(Value::Bytes(text.clone())),
        (Function::Type, [value]) => Ok(Value::Type(value.kind())),
        (Function::Timestamp, [Value::Timestamp(nanos)]) => Ok(Value::Timestamp(*nanos)),
        (Function::Timestamp, [Value::Int(seconds)]) => {
            Ok(Value::Timestamp(i128::from(*seconds) * 1_000_000_000))
        }
        (Function::Timestamp, [Value::String(text)]) => {
            utf8(text).and_then(time::timestamp).map(Value::Timestamp).ok_or(Fault::Invalid)
        }
        (Function::Duration, [Value::Duration(nanos)]) => Ok(Value::Duration(*nanos)),
        (Function::Duration, [Value::String(text)]) => {
            utf8(text).and_then(time::duration).map(Value::Duration).ok_or(Fault::Invalid)
        }
        (Function::Part(part), [value, zone @ ..]) => of_time(part, value, zone.first()),
        (Function::Replace, [Value::String(text), Value::String(old), Value::String(new), most @ ..]) => {
            replace(text, old, new, most.first())
        }
        (Function::Split, [Value::String(text), Value::String(separator), most @ ..]) => {
            split(text, separator, most.first())
        }
        (Function::LowerAscii, [Value::String(text)]) => Ok(Value::text(text.to_ascii_lowercase())),
        (Function::UpperAscii, [Value::String(text)]) => Ok(Value::text(text.to_ascii_uppercase())),
        (function, [one, other]) => arithmetic(function, one, other),
        _ => Err(Fault::NoOverload),
    }
}

fn utf8(text: &[u8]) -> Option<&str> {
    std::str::from_utf8(text).ok()
}

fn order<'a>(one: &Value<'_>, other: &Value<'_>, holds: fn(Ordering) -> bool) -> Evaluated<'a> {
    match (one.compare(other), one, other) {
        (Some(order), ..) => Ok(Value::Bool(holds(order))),
        // Nothing is less or greater than what is no number.
        (None, Value::Double(_), _) | (None, _, Value::Double(_)) if is_number(one) && is_number(other) => {
            Ok(Value::Bool(false))
        }
        _ => Err(Fault::NoOverload),
    }
}

fn is_number(value: &Value<'_>) -> bool {
    matches!(value, Value::Int(_) | Value::Uint(_) | Value::Double(_))
}

fn negate<'a>(value: &Value<'_>) -> Evaluated<'a> {
    match value {
        Value::Int(value) => value.checked_neg().map(Value::Int).ok_or(Fault::Overflow),
        Value::Double(value) => Ok(Value::Double(-value)),
        _ => Err(Fault::NoOverload),
    }
}

fn size<'a>(value: &Value<'_>) -> Evaluated<'a> {
    let size = match value {
        // Characters; bytes that begin none count as one each.
        Value::String(text) => match utf8(text) {
            Some(text) => text.chars().count(),
            None => text.len(),
        },
        Value::Bytes(bytes) => bytes.len(),
        Value::List(values) => values.len(),
        Value::Map(map) => map.len().ok_or(Fault::NoOverload)?,
        _ => return Err(Fault::NoOverload),
    };
    i64::try_from(size).map(Value::Int).map_err(|_| Fault::Overflow)
}

/// Numbers of other kinds and from texts.
fn number<'a>(function: Function, value: &Value<'_>) -> Evaluated<'a> {
    let text = |text: &Cow<'_, [u8]>| utf8(text).map(str::to_owned).ok_or(Fault::Invalid);
    match (function, value) {
        (Function::Int, Value::Int(value)) => Ok(Value::Int(*value)),
        (Function::Int, Value::Uint(value)) => {
            i64::try_from(*value).map(Value::Int).map_err(|_| Fault::Overflow)
        }
        (Function::Int, Value::Double(value)) if value.abs() < i64::MAX as f64 => {
            Ok(Value::Int(*value as i64))
        }
        (Function::Int, Value::Timestamp(nanos)) => {
            i64::try_from(nanos.div_euclid(1_000_000_000)).map(Value::Int).map_err(|_| Fault::Overflow)
        }
        (Function::Int, Value::String(value)) => {
            text(value)?.parse().map(Value::Int).map_err(|_| Fault::Invalid)
        }
        (Function::Uint, Value::Uint(value)) => Ok(Value::Uint(*value)),
        (Function::Uint, Value::Int(value)) => {
            u64::try_from(*value).map(Value::Uint).map_err(|_| Fault::Overflow)
        }
        (Function::Uint, Value::Double(value)) if (0.0..u64::MAX as f64).contains(value) => {
            Ok(Value::Uint(*value as u64))
        }
        (Function::Uint, Value::String(value)) => {
            text(value)?.parse().map(Value::Uint).map_err(|_| Fault::Invalid)
        }
        (Function::Double, Value::Double(value)) => Ok(Value::Double(*value)),
        (Function::Double, Value::Int(value)) => Ok(Value::Double(*value as f64)),
        (Function::Double, Value::Uint(value)) => Ok(Value::Double(*value as f64)),
        (Function::Double, Value::String(value)) => {
            text(value)?.parse().map(Value::Double).map_err(|_| Fault::Invalid)
        }
        (_, Value::Double(_)) => Err(Fault::Overflow),
        _ => Err(Fault::NoOverload),
    }
}

fn truth<'a>(value: &Value<'_>) -> Evaluated<'a> {
    match value {
        Value::Bool(value) => Ok(Value::Bool(*value)),
        Value::String(text) => match &text[..] {
            b"true" | b"True" | b"TRUE" | b"t" | b"1" => Ok(Value::Bool(true)),
            b"false" | b"False" | b"FALSE" | b"f" | b"0" => Ok(Value::Bool(false)),
            _ => Err(Fault::Invalid),
        },
        _ => Err(Fault::NoOverload),
    }
}

/// A pattern that comes with the request: it is compiled for it, and so it has to be short.
fn matches<'a>(text: &[u8], pattern: &[u8]) -> Evaluated<'a> {
    let pattern = utf8(pattern).filter(|pattern| pattern.len() <= MAX_PATTERN).ok_or(Fault::Invalid)?;
    Ok(Value::Bool(Regex::search(pattern).map_err(|_| Fault::Invalid)?.is_match(text)))
}

fn string<'a>(value: &Value<'a>) -> Evaluated<'a> {
    Ok(match value {
        Value::String(text) => Value::String(text.clone()),
        Value::Bytes(bytes) if std::str::from_utf8(bytes).is_ok() => Value::String(bytes.clone()),
        Value::Bytes(_) => return Err(Fault::Invalid),
        Value::Bool(_) | Value::Int(_) | Value::Uint(_) | Value::Double(_) => {
            let mut out = Vec::new();
            super::text::write(value, false, &mut out);
            Value::text(out)
        }
        Value::Timestamp(_) | Value::Duration(_) => {
            let mut out = Vec::new();
            super::text::write(value, false, &mut out);
            Value::text(out)
        }
        _ => return Err(Fault::NoOverload),
    })
}

/// Adds, subtracts, multiplies, divides, or answers what is left: by these functions, in this order.
fn of_whole<T: Default + PartialEq>(
    function: Function,
    one: T,
    other: T,
    [add, subtract, multiply, divide, remainder]: [fn(T, T) -> Option<T>; 5],
) -> Result<T, Fault> {
    let by = match function {
        Function::Add | Function::AddTexts => add,
        Function::Subtract => subtract,
        Function::Multiply => multiply,
        Function::Divide | Function::Remainder if other == T::default() => return Err(Fault::DivisionByZero),
        Function::Divide => divide,
        Function::Remainder => remainder,
        _ => return Err(Fault::NoOverload),
    };
    by(one, other).ok_or(Fault::Overflow)
}

fn arithmetic<'a>(function: Function, one: &Value<'a>, other: &Value<'a>) -> Evaluated<'a> {
    match (function, one, other) {
        (_, Value::Int(one), Value::Int(other)) => {
            let whole =
                [i64::checked_add, i64::checked_sub, i64::checked_mul, i64::checked_div, i64::checked_rem];
            of_whole(function, *one, *other, whole).map(Value::Int)
        }
        (_, Value::Uint(one), Value::Uint(other)) => {
            let whole =
                [u64::checked_add, u64::checked_sub, u64::checked_mul, u64::checked_div, u64::checked_rem];
            of_whole(function, *one, *other, whole).map(Value::Uint)
        }
        (_, Value::Double(one), Value::Double(other)) => Ok(Value::Double(match function {
            Function::Add | Function::AddTexts => one + other,
            Function::Subtract => one - other,
            Function::Multiply => one * other,
            Function::Divide => one / other,
            _ => return Err(Fault::NoOverload),
        })),
        (Function::Add | Function::AddTexts, Value::Timestamp(time), Value::Duration(span))
        | (Function::Add | Function::AddTexts, Value::Duration(span), Value::Timestamp(time)) => {
            time.checked_add(*span).map(Value::Timestamp).ok_or(Fault::Overflow)
        }
        (Function::Add | Function::AddTexts, Value::Duration(one), Value::Duration(other)) => {
            one.checked_add(*other).map(Value::Duration).ok_or(Fault::Overflow)
        }
        (Function::Subtract, Value::Timestamp(one), Value::Timestamp(other))
        | (Function::Subtract, Value::Duration(one), Value::Duration(other)) => {
            one.checked_sub(*other).map(Value::Duration).ok_or(Fault::Overflow)
        }
        (Function::Subtract, Value::Timestamp(time), Value::Duration(span)) => {
            time.checked_sub(*span).map(Value::Timestamp).ok_or(Fault::Overflow)
        }
        (Function::AddTexts, Value::String(one), Value::String(other)) => concat(one, other).map(Value::text),
        (Function::AddTexts, Value::Bytes(one), Value::Bytes(other)) => {
            concat(one, other).map(|bytes| Value::Bytes(Cow::Owned(bytes)))
        }
        _ => Err(Fault::NoOverload),
    }
}

fn of_time<'a>(part: Part, value: &Value<'_>, zone: Option<&Value<'_>>) -> Evaluated<'a> {
    if let (Value::Duration(nanos), None) = (value, zone) {
        let size = match part {
            Part::Hours => 3_600_000_000_000,
            Part::Minutes => 60_000_000_000,
            Part::Seconds => 1_000_000_000,
            Part::Milliseconds => return Ok(Value::Int((nanos % 1_000_000_000 / 1_000_000) as i64)),
            _ => return Err(Fault::NoOverload),
        };
        return i64::try_from(nanos / size).map(Value::Int).map_err(|_| Fault::Overflow);
    }
    let zone = match zone {
        None => None,
        Some(Value::String(zone)) => Some(utf8(zone).ok_or(Fault::Invalid)?),
        Some(_) => return Err(Fault::NoOverload),
    };
    let Value::Timestamp(nanos) = value else { return Err(Fault::NoOverload) };
    let time = time::civil(*nanos, zone).ok_or(Fault::Invalid)?;
    Ok(Value::Int(match part {
        Part::FullYear => time.year().into(),
        Part::Month => i64::from(time.month()) - 1,
        Part::Date => time.day().into(),
        Part::DayOfMonth => i64::from(time.day()) - 1,
        Part::DayOfWeek => time.weekday().to_sunday_zero_offset().into(),
        Part::DayOfYear => i64::from(time.day_of_year()) - 1,
        Part::Hours => time.hour().into(),
        Part::Minutes => time.minute().into(),
        Part::Seconds => time.second().into(),
        Part::Milliseconds => time.millisecond().into(),
    }))
}

fn concat(one: &[u8], other: &[u8]) -> Result<Vec<u8>, Fault> {
    if one.len() + other.len() > MAX_TEXT { Err(Fault::Overflow) } else { Ok([one, other].concat()) }
}

/// How many are meant; all without a number.
fn most(most: Option<&Value<'_>>) -> Result<usize, Fault> {
    match most {
        None => Ok(usize::MAX),
        Some(Value::Int(most)) => Ok(usize::try_from(*most).unwrap_or(usize::MAX)),
        Some(_) => Err(Fault::NoOverload),
    }
}

fn replace<'a>(text: &[u8], old: &[u8], new: &[u8], limit: Option<&Value<'_>>) -> Evaluated<'a> {
    let mut left = most(limit)?;
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while left > 0
        && !old.is_empty()
        && let Some(at) = memchr::memmem::find(rest, old)
    {
        let (before, after) = rest.split_at(at);
        rest = after.get(old.len()..).unwrap_or_default();
        if out.len() + before.len() + new.len() + rest.len() > MAX_TEXT {
            return Err(Fault::Overflow);
        }
        out.extend_from_slice(before);
        out.extend_from_slice(new);
        left -= 1;
    }
    out.extend_from_slice(rest);
    Ok(Value::text(out))
}

/// As many parts as an expression may have, at most: each costs more than its bytes.
fn split<'a>(text: &[u8], separator: &[u8], limit: Option<&Value<'_>>) -> Evaluated<'a> {
    let limit = most(limit)?;
    let mut parts = Vec::new();
    let mut rest = text;
    while parts.len() + 1 < limit
        && !separator.is_empty()
        && let Some(at) = memchr::memmem::find(rest, separator)
    {
        let (before, after) = rest.split_at(at);
        if parts.len() + 1 >= MAX_PARTS {
            return Err(Fault::Overflow);
        }
        parts.push(Value::text(before.to_vec()));
        rest = after.get(separator.len()..).unwrap_or_default();
    }
    if limit > 0 {
        parts.push(Value::text(rest.to_vec()));
    }
    Ok(list(parts))
}
