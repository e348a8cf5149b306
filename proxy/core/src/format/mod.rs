//! Format strings: Envoy's `%OPERATOR(args):length%` and APISIX's `$variable`, compiled to one list of
//! parts. One engine for header values, access logs, bodies, rewrites and hash keys.
//!
//! Nothing is looked up by name while a request runs: an operator or a variable is a function or a prepared
//! name. Writing appends to a buffer and allocates nothing for what logs and headers usually hold.

mod body;
mod certificate;
mod client_cert;
mod envoy;
mod escape;
mod fixed;
mod graphql;
mod in_body;
mod joined;
mod json;
mod network;
mod nginx;
mod operator;
mod read;
mod template;
#[cfg(test)]
mod tests;
mod text;
mod time;
mod variable;
mod walk;

pub use body::BodyLimits;
pub use escape::Escape;
pub use fixed::{request_bytes, response_bytes};
pub use in_body::{BodyValues, BodyVariable, find as find_in_body};
pub use json::{Dialect, JsonOptions, quote};
pub use nginx::sent_connection;
pub use operator::grpc_status;
pub(crate) use operator::has_request;
pub use time::TimeFormat;
#[cfg(test)]
pub(crate) use variable::JOINED;
pub(crate) use variable::Shown;
pub use variable::{Variable, client_forwarded_for, noticing_bodies};

use crate::headers::control;
use crate::lookup::Lookup;
use crate::stream::Stream;
use json::Node;
use operator::Operator;
use std::sync::Arc;
use text::Text;

/// Envoy's access log line when the configuration gives no format (usage.rst, "Default format string").
pub const ENVOY_DEFAULT: &str = concat!(
    "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% ",
    "%RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% ",
    "\"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" ",
    "\"%UPSTREAM_HOST%\"\n"
);

/// Milliseconds from the first byte of the request to the end of the stream, or to now.
pub fn duration_ms(stream: &Stream) -> u64 {
    fixed::millis_so_far(stream)
}

#[cfg(test)]
pub(crate) use tests::stream as test_stream;

/// A compiled format.
#[derive(Debug, Default)]
pub struct Format {
    parts: Box<[Part]>,
    /// Bytes of the text that ends it: the line end of a log.
    tail: usize,
    /// No text before that has a control in it.
    plain: bool,
    /// `omit_empty_values`: a missing value is nothing where it would be `-`.
    omit_empty: bool,
    /// A variable of it is in the request's body, which is read once for all of them then.
    of_body: bool,
}

#[derive(Debug)]
enum Part {
    Text(Text),
    Operator {
        /// Text before it.
        before: Text,
        operator: Operator,
        /// Bytes that are kept.
        max: Option<usize>,
    },
    Variable {
        variable: Variable,
        /// `${name ?? default}`
        default: Option<Box<[u8]>>,
    },
    Json(Box<Node>),
}

/// What an operator or a variable wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    /// Nothing: the value is not there.
    Missing,
    /// Text.
    Text,
    /// A number, an object or a list in JSON's spelling.
    Json,
}

/// How the values of one output look.
#[derive(Clone, Copy)]
struct Style {
    missing: &'static [u8],
    escape: Escape,
}

impl Format {
    /// Plain text.
    pub fn text(text: &str) -> Format {
        Format::of(vec![Part::text(text)])
    }

    /// Envoy's command operators.
    ///
    /// # Errors
    /// When an operator is not known, its arguments are wrong, or a `%` stands alone.
    pub fn envoy(text: &str) -> Result<Format, String> {
        envoy::parse(text).map(Format::of)
    }

    /// APISIX's `$name`, `${name}` and `${name ?? default}`; behind a backslash `$` is text, and the backslash too. A name that nobody knows
    /// is a variable that some plugin may set, so no template is wrong.
    ///
    /// # Errors
    /// None so far.
    pub fn apisix(text: &str) -> Result<Format, String> {
        Ok(Format::of(template::parse(text, Variable::parse, true)))
    }

    /// The value of one variable, whatever characters its name has: that of a cookie may have any.
    pub fn variable(name: &str) -> Format {
        Format::of(vec![Part::Variable { variable: Variable::parse(name), default: None }])
    }

    /// A line of nginx's `log_format`: [`Format::apisix`], with the request as the client sent it.
    ///
    /// # Errors
    /// None so far.
    pub fn nginx_log(text: &str) -> Result<Format, String> {
        Ok(Format::of(template::parse(text, Variable::of_log, false)))
    }

    /// The variables of an APISIX format that only plugins could assign, because nothing here has that name.
    pub fn unknown_variables(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Variable { variable, .. } => variable.unknown(),
            _ => None,
        })
    }

    /// A JSON document whose strings are formats. Keys are sorted; a string that is one operator keeps the
    /// operator's type.
    ///
    /// # Errors
    /// As the dialect's strings give them, after the path of the field.
    pub fn json(value: &serde_json::Value, options: JsonOptions) -> Result<Format, String> {
        let node = json::compile(value, options)?;
        let format = Format::of(vec![Part::Json(Box::new(node))]);
        Ok(Format { omit_empty: options.omit_empty, ..format })
    }

    /// As [`Format::json`], of a value that is a member of the document.
    ///
    /// # Errors
    /// As of [`Format::json`].
    pub fn json_member(value: &serde_json::Value, options: JsonOptions) -> Result<Format, String> {
        Ok(Format::of(vec![Part::Json(Box::new(json::compile_member(value, options)?))]))
    }

    /// Appends a JSON document; tells whether there is one. There is none where it is a single variable or operator
    /// without a value, and then nothing was written.
    pub fn write_json(&self, stream: &Stream, out: &mut Vec<u8>) -> bool {
        let _once = self.of_body.then(Lookup::begin);
        match &self.parts[..] {
            [Part::Json(node)] => node.put(stream, out),
            _ => false,
        }
    }

    fn of(parts: Vec<Part>) -> Format {
        let parts = joined(parts);
        let text = |part: &Part| part.text_before().is_some_and(|text| control(text).is_some());
        let (tail, before) = match parts.split_last() {
            Some((Part::Text(last), before)) => (last.bytes().len(), before),
            _ => (0, &parts[..]),
        };
        let plain = !before.iter().any(text);
        let mut variables = Vec::new();
        parts.iter().for_each(|part| part.body_variables(&mut variables));
        let of_body = !variables.is_empty();
        Format { tail, plain, parts: parts.into(), omit_empty: false, of_body }
    }

    /// Whether a variable of it is in the request's body.
    pub fn is_of_body(&self) -> bool {
        self.of_body
    }

    /// Its variables that are in the request's body.
    pub fn body_variables(&self) -> Vec<Arc<BodyVariable>> {
        let mut all = Vec::new();
        if self.of_body {
            self.parts.iter().for_each(|part| part.body_variables(&mut all));
        }
        all
    }

    /// Makes a missing value nothing in logs and bodies too (`omit_empty_values`).
    #[must_use]
    pub fn omit_empty(mut self) -> Format {
        self.omit_empty = true;
        self
    }

    /// Whether this is a JSON document.
    pub fn is_json(&self) -> bool {
        matches!(&self.parts[..], [Part::Json(_)])
    }

    /// The text, when nothing in it depends on the request.
    pub fn constant(&self) -> Option<&[u8]> {
        match &self.parts[..] {
            [] => Some(b""),
            [Part::Text(text)] => Some(text.bytes()),
            _ => None,
        }
    }

    /// For header values: a missing value is nothing, and bytes that no header may hold become spaces.
    pub fn write_header(&self, stream: &Stream, out: &mut Vec<u8>) {
        self.write(stream, out, Style { missing: b"", escape: Escape::Header });
    }

    /// For text access logs: a missing value is `-`, and control bytes of values are written as `\xHH`.
    pub fn write_log(&self, stream: &Stream, out: &mut Vec<u8>) {
        self.write_escaped(stream, out, Escape::Control);
    }

    /// For access logs with nginx's escaping (`access_log_format_escape`): a missing value is `-`, or nothing
    /// where JSON is meant.
    pub fn write_escaped(&self, stream: &Stream, out: &mut Vec<u8>, escape: Escape) {
        let missing: &[u8] = if self.omit_empty || escape == Escape::Json { b"" } else { b"-" };
        self.write(stream, out, Style { missing, escape });
    }

    /// For bodies: a missing value is `-`, values are as they are, and a JSON document ends its line.
    pub fn write_body(&self, stream: &Stream, out: &mut Vec<u8>) {
        let missing: &[u8] = if self.omit_empty { b"" } else { b"-" };
        self.write(stream, out, Style { missing, escape: Escape::None });
        if self.is_json() {
            out.push(b'\n');
        }
    }

    /// For rewrites and hash keys: a missing value is nothing, values are as they are.
    pub fn write_value(&self, stream: &Stream, out: &mut Vec<u8>) {
        self.resolve_count(stream, out);
    }

    /// As [`Format::write_value`]; tells how many variables had a value or a default, which APISIX's callers ask for.
    pub fn resolve_count(&self, stream: &Stream, out: &mut Vec<u8>) -> usize {
        self.write(stream, out, Style { missing: b"", escape: Escape::None })
    }

    /// As [`Format::resolve_count`], where `$1` and `${1}` are groups of a match.
    pub fn resolve_captures(&self, stream: &Stream, groups: &[Option<&[u8]>], out: &mut Vec<u8>) -> usize {
        let mut resolved = 0;
        for part in &self.parts {
            match part {
                Part::Variable { variable, default } => {
                    let group = variable.capture().and_then(|n| groups.get(n).copied().flatten());
                    match group.map(|text| out.extend_from_slice(text)) {
                        Some(()) => resolved += 1,
                        None if variable.write(stream, out) => resolved += 1,
                        None => {
                            out.extend_from_slice(default.as_deref().unwrap_or_default());
                            resolved += usize::from(default.is_some());
                        }
                    }
                }
                part => {
                    resolved +=
                        usize::from(part.write(stream, out, Style { missing: b"", escape: Escape::None }));
                }
            }
        }
        resolved
    }

    /// Appends all parts; tells how many values were there. Nearly always nothing is to be escaped, and one look at
    /// all of them together tells.
    fn write(&self, stream: &Stream, out: &mut Vec<u8>, style: Style) -> usize {
        let _once = self.of_body.then(Lookup::begin);
        let each = |out: &mut Vec<u8>, style: Style| {
            self.parts.iter().map(|part| usize::from(part.write(stream, out, style))).sum()
        };
        if !self.plain || !style.escape.leaves_plain() {
            return each(out, style);
        }
        let start = out.len();
        let found = each(out, Style { escape: Escape::None, ..style });
        let end = out.len() - self.tail;
        if style.escape == Escape::None || control(&out[start..end]).is_none() {
            return found;
        }
        out.truncate(start);
        each(out, style)
    }
}

/// Texts as parts of the operators that follow them, as far as there are any: half as many parts to look at.
fn joined(parts: Vec<Part>) -> Vec<Part> {
    let mut joined = Vec::with_capacity(parts.len());
    for part in parts {
        match (part, joined.pop()) {
            (Part::Operator { before, operator, max }, Some(Part::Text(text)))
                if before.bytes().is_empty() =>
            {
                joined.push(Part::Operator { before: text, operator, max });
            }
            (part, last) => {
                joined.extend(last);
                joined.push(part);
            }
        }
    }
    joined
}

impl Part {
    fn text(text: &str) -> Part {
        Part::Text(Text::new(text.as_bytes()))
    }

    fn operator(operator: Operator, max: Option<usize>) -> Part {
        Part::Operator { before: Text::default(), operator, max }
    }

    fn body_variables(&self, all: &mut Vec<Arc<BodyVariable>>) {
        match self {
            Part::Variable { variable, .. } => all.extend(variable.of_body().cloned()),
            Part::Json(node) => node.each(&mut |part| part.body_variables(all)),
            Part::Text(_) | Part::Operator { .. } => {}
        }
    }

    /// What it is, or begins with, whatever the request.
    fn text_before(&self) -> Option<&[u8]> {
        match self {
            Part::Text(text) | Part::Operator { before: text, .. } => Some(text.bytes()),
            Part::Variable { .. } | Part::Json(_) => None,
        }
    }

    /// Appends the part; tells whether it is a value that was there. A log line has a dozen and more, each of a few
    /// instructions: calls would be half of them.
    #[inline(always)]
    fn write(&self, stream: &Stream, out: &mut Vec<u8>, style: Style) -> bool {
        let mut start = out.len();
        match self {
            Part::Text(text) => {
                text.write(out);
                return false;
            }
            Part::Json(node) => {
                node.write(stream, out);
                return true;
            }
            Part::Operator { before, operator, max } => {
                before.write(out);
                start = out.len();
                if operator.write(stream, out) == Written::Missing {
                    out.extend_from_slice(style.missing);
                    return false;
                }
                if let Some(max) = max {
                    out.truncate(start + max);
                }
            }
            Part::Variable { variable, default } => {
                if !variable.write(stream, out) {
                    // What stands in for a value is one, as in APISIX.
                    out.extend_from_slice(default.as_deref().unwrap_or(style.missing));
                    // A default is a value, as in APISIX.
                    return default.is_some();
                }
            }
        }
        if style.escape != Escape::None {
            style.escape.apply(out, start);
        }
        true
    }
}
