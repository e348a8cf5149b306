//! Header changes of a route, a virtual host, a table or a weighted cluster.

use crate::format::Format;
use crate::headers::{HeaderName, Headers, Known};
use crate::stream::Stream;
use smallvec::SmallVec;
use std::ops::Range;

/// What adding does when the header is there already (core/v3/base.proto HeaderAppendAction).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AppendAction {
    /// Adds a second line.
    #[default]
    AppendIfExistsOrAdd,
    /// Leaves it as it is.
    AddIfAbsent,
    /// Replaces it, or adds it.
    OverwriteIfExistsOrAdd,
    /// Replaces it, or does nothing.
    OverwriteIfExists,
}

/// One addition.
#[derive(Debug)]
pub struct HeaderAddition {
    /// Header to change.
    pub name: HeaderName,
    /// Value, with its operators.
    pub value: Format,
    /// What to do when it is there.
    pub action: AppendAction,
    /// `keep_empty_value`: add it although the value came out empty.
    pub keep_empty: bool,
}

/// Removals, then additions, of one level of the configuration.
#[derive(Debug, Default)]
pub struct HeaderOps {
    /// Removed first.
    pub remove: Box<[HeaderName]>,
    /// Added then, in order; what replaces comes before what does not.
    pub add: Box<[HeaderAddition]>,
}

/// Which message of a stream is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The request.
    Request,
    /// The response.
    Response,
    /// The trailers of the request.
    RequestTrailers,
    /// The trailers of the response.
    ResponseTrailers,
}

impl Side {
    fn is_response(self) -> bool {
        matches!(self, Side::Response | Side::ResponseTrailers)
    }

    /// The fields of that part of a stream.
    pub fn headers(self, stream: &mut Stream) -> &mut Headers {
        match self {
            Side::Request => &mut stream.request.headers,
            Side::Response => &mut stream.response.headers,
            Side::RequestTrailers => &mut stream.request_trailers,
            Side::ResponseTrailers => &mut stream.response_trailers,
        }
    }
}

impl HeaderOps {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }

    /// Changes the headers of one side of `stream`; what frames a response is not added ([`Known::frames`]). Values and conditions see the message as it is after the
    /// removals: no addition sees another one. Replacements come before additions (common/router/header_parser.cc
    /// `HeaderParser::evaluateHeaders`).
    pub fn apply(&self, stream: &mut Stream, side: Side) {
        for name in &self.remove {
            side.headers(stream).remove(name);
        }
        if let [only] = &*self.add {
            let mut value = Vec::new();
            if only.evaluate(stream, side, &mut value) {
                only.put(side.headers(stream), &value);
            }
            return;
        }
        let (mut values, mut wanted) = (Vec::new(), Evaluated::new());
        for addition in &self.add {
            let start = values.len();
            if addition.evaluate(stream, side, &mut values) {
                wanted.push((addition, start..values.len()));
            }
        }
        let headers = side.headers(stream);
        for replaces in [true, false] {
            for (addition, at) in wanted.iter().filter(|(addition, _)| addition.replaces() == replaces) {
                addition.put(headers, &values[at.clone()]);
            }
        }
    }
}

/// Additions that are to be made, and where among the values theirs are.
type Evaluated<'a> = SmallVec<[(&'a HeaderAddition, Range<usize>); 8]>;

impl HeaderAddition {
    /// Writes its value behind `out`; `false` if it is not to be added.
    fn evaluate(&self, stream: &mut Stream, side: Side, out: &mut Vec<u8>) -> bool {
        if side.is_response() && self.name.known().is_some_and(Known::frames) {
            return false;
        }
        let start = out.len();
        self.value.write_header(stream, out);
        if out.len() == start && !self.keep_empty {
            return false;
        }
        match self.action {
            AppendAction::AppendIfExistsOrAdd | AppendAction::OverwriteIfExistsOrAdd => true,
            AppendAction::AddIfAbsent => !side.headers(stream).contains(&self.name),
            AppendAction::OverwriteIfExists => side.headers(stream).contains(&self.name),
        }
    }

    /// Whether it takes the place of what is there.
    fn replaces(&self) -> bool {
        matches!(self.action, AppendAction::OverwriteIfExistsOrAdd | AppendAction::OverwriteIfExists)
    }

    fn put(&self, headers: &mut Headers, value: &[u8]) {
        match self.replaces() {
            true => headers.set(&self.name, value),
            false => headers.append(&self.name, value),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::stream::fixture::stream;
    use AppendAction::*;

    fn lines(ops: &HeaderOps, sent: &[(&str, &str)], side: Side) -> Vec<String> {
        let mut stream = stream("/", sent);
        let sent = std::mem::take(&mut stream.request.headers);
        *side.headers(&mut stream) = sent;
        ops.apply(&mut stream, side);
        let text = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
        side.headers(&mut stream).iter().map(|(n, v)| format!("{}: {}", text(n), text(v))).collect()
    }

    fn ops(remove: &[&str], add: &[(&str, &str, AppendAction)]) -> HeaderOps {
        let name = |n: &str| HeaderName::new(n).unwrap();
        let addition = |(n, value, action): &(&str, &str, AppendAction)| HeaderAddition {
            name: name(n),
            value: Format::envoy(value).unwrap(),
            action: *action,
            keep_empty: false,
        };
        HeaderOps {
            remove: remove.iter().map(|n| name(n)).collect(),
            add: add.iter().map(addition).collect(),
        }
    }

    #[test]
    fn no_addition_sees_another_one() {
        for (side, of) in [(Side::Request, "REQ"), (Side::Response, "RESP")] {
            let value = |name: &str| format!("%{of}({name})%");
            let adds = ops(
                &[],
                &[
                    ("x-1", "one", AppendIfExistsOrAdd),
                    ("x-2", &value("x-1"), AppendIfExistsOrAdd),
                    ("x-old", "new", OverwriteIfExistsOrAdd),
                    ("x-3", &value("x-old"), AppendIfExistsOrAdd),
                ],
            );
            assert_eq!(lines(&adds, &[("x-old", "old")], side), ["x-old: new", "x-1: one", "x-3: old"]);
            // Nor does a condition.
            let once = ("x-1", "two", AddIfAbsent);
            let both = ops(&[], &[("x-1", "one", AppendIfExistsOrAdd), once]);
            assert_eq!(lines(&both, &[], side), ["x-1: one", "x-1: two"]);
            assert_eq!(lines(&both, &[("x-1", "zero")], side), ["x-1: zero", "x-1: one"]);
            let none = ops(&[], &[("x-1", "one", AppendIfExistsOrAdd), ("x-1", "two", OverwriteIfExists)]);
            assert_eq!(lines(&none, &[], side), ["x-1: one"]);
        }
    }

    /// A second Content-Length made of a good response one that could not be written.
    #[test]
    fn what_frames_a_response_is_not_added() {
        let names = [
            "content-length",
            "Transfer-Encoding",
            "connection",
            "keep-alive",
            "proxy-connection",
            "upgrade",
        ];
        for name in names {
            for action in [AppendIfExistsOrAdd, AddIfAbsent, OverwriteIfExistsOrAdd, OverwriteIfExists] {
                let one = ops(&[], &[(name, "0", action)]);
                let two = ops(&[], &[("x-a", "1", AppendIfExistsOrAdd), (name, "0", action)]);
                for side in [Side::Response, Side::ResponseTrailers] {
                    assert_eq!(lines(&one, &[("content-length", "5")], side), ["content-length: 5"]);
                    assert_eq!(lines(&two, &[], side), ["x-a: 1"]);
                }
            }
        }
        let gone = ops(&["content-length"], &[]);
        assert!(lines(&gone, &[("content-length", "5")], Side::Response).is_empty());
    }

    #[test]
    fn removals_are_seen_and_replacements_come_first() {
        let gone = ops(&["x-1"], &[("x-2", "%REQ(x-1)%", AppendIfExistsOrAdd), ("x-1", "new", AddIfAbsent)]);
        assert_eq!(lines(&gone, &[("x-1", "old")], Side::Request), ["x-1: new"]);
        let late = ops(&[], &[("x-1", "a", AppendIfExistsOrAdd), ("x-1", "b", OverwriteIfExistsOrAdd)]);
        assert_eq!(lines(&late, &[("x-1", "old")], Side::Request), ["x-1: b", "x-1: a"]);
    }
}
