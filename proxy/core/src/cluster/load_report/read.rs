//! The three forms of a report (source/common/orca/orca_parser.cc). A report that can't be read in all of its parts is none.

use super::{Load, Map, Metric, plain};
use crate::headers::Headers;
use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::Value;

const HEADER: &str = "endpoint-load-metrics";
const BINARY: &str = "endpoint-load-metrics-bin";
/// Metrics of a report in text: each is compared with all before it.
const MAX_METRICS: usize = 256;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The report of a response's headers or trailers.
pub(super) fn load(fields: &Headers, wanted: &[Metric]) -> Option<Load> {
    if let Some(value) = fields.get(BINARY) {
        return binary(value, wanted);
    }
    let value = fields.get(HEADER)?;
    let form = |prefix: &[u8]| value.strip_prefix(prefix);
    if let Some(value) = form(b"BIN ") {
        binary(value, wanted)
    } else if let Some(value) = form(b"TEXT ") {
        text(std::str::from_utf8(value).ok()?, wanted)
    } else {
        json(form(b"JSON ")?, wanted)
    }
}

/// `cpu_utilization:0.3,named_metrics.queue:0.1`; a name and its value are parted by `:` or `=`.
fn text(value: &str, wanted: &[Metric]) -> Option<Load> {
    let mut load = Load::default();
    let mut names: Vec<&str> = Vec::new();
    for part in value.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, number) = part.split_once([':', '='])?;
        let number: f64 = decimal(number.trim())?;
        if !number.is_finite() || number < 0.0 || names.len() == MAX_METRICS || names.contains(&name) {
            return None;
        }
        names.push(name);
        match name.strip_prefix("named_metrics.") {
            Some("") => return None,
            Some(key) => load.note(wanted, Map::Named, key, number),
            // Envoy takes these too; they are of no matter unless asked for.
            None => match name.strip_prefix("utilization.") {
                Some(key) => load.note(wanted, Map::Utilization, key, number),
                None => load.set(&plain(name)?, number),
            },
        }
    }
    (!names.is_empty()).then_some(load)
}

/// As `strtod` reads it, hexadecimal whole numbers among them.
fn decimal(text: &str) -> Option<f64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok().map(|number| number as f64),
        None => text.parse().ok(),
    }
}

impl Load {
    fn set(&mut self, metric: &Metric, value: f64) {
        match metric {
            Metric::Application => self.application = value,
            Metric::Cpu => self.cpu = value,
            Metric::Memory => self.memory = value,
            Metric::Errors => self.errors = value,
            Metric::Requests => self.requests = value,
            Metric::Of(..) => {}
        }
    }
}

/// The message as JSON: names with underscores or in camel case, numbers as text too.
fn json(value: &[u8], wanted: &[Metric]) -> Option<Load> {
    let Value::Object(fields) = serde_json::from_slice(value).ok()? else { return None };
    let mut load = Load::default();
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
        let map = match name.as_str() {
            "named_metrics" | "namedMetrics" => Map::Named,
            "utilization" => Map::Utilization,
            "request_cost" | "requestCost" => Map::RequestCost,
            // It says how many requests there were, which `rps_fractional` says better.
            "rps" if number(value).is_some() => continue,
            "applicationUtilization" => {
                load.application = number(value)?;
                continue;
            }
            "cpuUtilization" => {
                load.cpu = number(value)?;
                continue;
            }
            "memUtilization" => {
                load.memory = number(value)?;
                continue;
            }
            "rpsFractional" => {
                load.requests = number(value)?;
                continue;
            }
            name => {
                load.set(&plain(name)?, number(value)?);
                continue;
            }
        };
        for (key, value) in value.as_object()? {
            load.note(wanted, map, key, number(value)?);
        }
    }
    Some(load)
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            text => text.parse().ok().filter(|number: &f64| number.is_finite()),
        },
        _ => None,
    }
}

/// The message as protobuf in base64.
fn binary(value: &[u8], wanted: &[Metric]) -> Option<Load> {
    let bytes = BASE64.decode(value).ok().filter(|bytes| !bytes.is_empty())?;
    let mut load = Load::default();
    let mut fields = Fields(&bytes);
    while let Some(field) = fields.next()? {
        match field {
            (1, Wire::Double(value)) => load.cpu = value,
            (2, Wire::Double(value)) => load.memory = value,
            (6, Wire::Double(value)) => load.requests = value,
            (7, Wire::Double(value)) => load.errors = value,
            (9, Wire::Double(value)) => load.application = value,
            (4, Wire::Bytes(entry)) => entry_of(entry, &mut load, Map::RequestCost, wanted)?,
            (5, Wire::Bytes(entry)) => entry_of(entry, &mut load, Map::Utilization, wanted)?,
            (8, Wire::Bytes(entry)) => entry_of(entry, &mut load, Map::Named, wanted)?,
            _ => {}
        }
    }
    Some(load)
}

fn entry_of(entry: &[u8], load: &mut Load, map: Map, wanted: &[Metric]) -> Option<()> {
    let (mut key, mut value) = ("", 0.0);
    let mut fields = Fields(entry);
    while let Some(field) = fields.next()? {
        match field {
            (1, Wire::Bytes(bytes)) => key = std::str::from_utf8(bytes).ok()?,
            (2, Wire::Double(number)) => value = number,
            _ => {}
        }
    }
    load.note(wanted, map, key, value);
    Some(())
}

/// The fields of a message in protobuf's encoding, groups (which nothing has any more) apart.
struct Fields<'b>(&'b [u8]);

enum Wire<'b> {
    Double(f64),
    Bytes(&'b [u8]),
    Other,
}

impl<'b> Fields<'b> {
    /// The next field, `Some(None)` at the end; `None` for what is no message.
    fn next(&mut self) -> Option<Option<(u64, Wire<'b>)>> {
        if self.0.is_empty() {
            return Some(None);
        }
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => {
                self.varint()?;
                Wire::Other
            }
            1 => Wire::Double(f64::from_le_bytes(self.take(8)?.try_into().ok()?)),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Wire::Other
            }
            _ => return None,
        };
        (tag >> 3 != 0).then_some(Some((tag >> 3, value)))
    }

    fn take(&mut self, length: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = *self.take(1)?.first()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}
