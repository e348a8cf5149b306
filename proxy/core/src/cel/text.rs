//! Values as Envoy prints them (`Expr::print`).

use super::time::{write_duration, write_timestamp};
use super::value::{Map, Value};
use std::io::Write as _;

pub(super) fn write(value: &Value<'_>, json: bool, out: &mut Vec<u8>) {
    let start = out.len();
    let bare = write_text(value, json, out);
    if json && !bare {
        let text = out.split_off(start);
        crate::format::quote(out, &text);
    }
}

/// Appends a value; tells whether JSON has it in this form.
fn write_text(value: &Value<'_>, json: bool, out: &mut Vec<u8>) -> bool {
    // Writing into memory does not fail.
    let _ = match value {
        Value::Null if json => out.write_all(b"null"),
        Value::Null => out.write_all(b"NULL"),
        Value::Bool(value) => write!(out, "{value}"),
        Value::Int(value) => write!(out, "{value}"),
        Value::Uint(value) => write!(out, "{value}"),
        Value::Double(value) if json => write!(out, "{value}"),
        Value::Double(value) => write_double(*value, out),
        Value::String(text) | Value::Bytes(text) => out.write_all(text),
        Value::Duration(nanos) => {
            write_duration(*nanos, out);
            Ok(())
        }
        Value::Timestamp(nanos) => {
            write_timestamp(*nanos, out);
            Ok(())
        }
        Value::List(_) => out.write_all(b"CelList value"),
        // Messages, which are printed field by field there.
        Value::Map(Map::Metadata(_) | Map::Configured(_)) => Ok(()),
        Value::Map(_) => out.write_all(b"CelMap value"),
        Value::Type(_) => out.write_all(b"CelType value"),
    };
    match value {
        Value::Null | Value::Bool(_) | Value::Int(_) | Value::Uint(_) => true,
        Value::Double(value) => value.is_finite(),
        _ => false,
    }
}

/// Six digits, as `absl::StrCat` has them.
fn write_double(value: f64, out: &mut Vec<u8>) -> std::io::Result<()> {
    if !value.is_finite() {
        let text = if value.is_nan() {
            "nan"
        } else if value > 0.0 {
            "inf"
        } else {
            "-inf"
        };
        return out.write_all(text.as_bytes());
    }
    let scientific = format!("{value:.5e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    let trimmed = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    if (-4..6).contains(&exponent) {
        let decimals = usize::try_from(5 - exponent).unwrap_or_default();
        return out.write_all(trimmed(&format!("{value:.decimals$}")).as_bytes());
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    write!(out, "{}e{sign}{:02}", trimmed(digits), exponent.abs())
}
