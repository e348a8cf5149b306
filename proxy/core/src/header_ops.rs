//! Header changes of a route, a virtual host, a table or a weighted cluster.

use crate::format::Format;
use crate::headers::{HeaderName, Headers};
use crate::stream::Stream;

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
    /// Added then, in order.
    pub add: Box<[HeaderAddition]>,
}

/// Which message of a stream is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The request.
    Request,
    /// The response.
    Response,
}

impl HeaderOps {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }

    /// Changes the headers of one side of `stream`.
    pub fn apply(&self, stream: &mut Stream, side: Side) {
        for name in &self.remove {
            headers(stream, side).remove(name);
        }
        if self.add.is_empty() {
            return;
        }
        let mut value = Vec::new();
        for addition in &self.add {
            value.clear();
            addition.value.write_header(stream, &mut value);
            if value.is_empty() && !addition.keep_empty {
                continue;
            }
            addition.put(headers(stream, side), &value);
        }
    }
}

fn headers(stream: &mut Stream, side: Side) -> &mut Headers {
    match side {
        Side::Request => &mut stream.request.headers,
        Side::Response => &mut stream.response.headers,
    }
}

impl HeaderAddition {
    fn put(&self, headers: &mut Headers, value: &[u8]) {
        match self.action {
            AppendAction::AppendIfExistsOrAdd => headers.append(&self.name, value),
            AppendAction::AddIfAbsent => headers.set_if_absent(&self.name, value),
            AppendAction::OverwriteIfExistsOrAdd => headers.set(&self.name, value),
            AppendAction::OverwriteIfExists => {
                if headers.contains(&self.name) {
                    headers.set(&self.name, value);
                }
            }
        }
    }
}
