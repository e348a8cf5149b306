//! What APISIX's plugins share: how they are made, header changes, answers, patterns.

mod factory;
mod headers;
mod pattern;

pub(crate) use factory::{Made, apisix};
pub(crate) use headers::{HeaderChanges, Side};
pub(crate) use pattern::{Groups, Pattern, Replacement};

use sixfold_core::format::Format;
use sixfold_core::plugin::LocalReply;
use sixfold_core::stream::Stream;

/// An answer with `{"error_msg": …}`, as APISIX's plugins give it.
pub(crate) fn error_reply(status: u16, message: &str) -> LocalReply {
    let body = format!("{}\n", serde_json::json!({ "error_msg": message }));
    LocalReply::new(status, body, "")
}

/// The value of a template: a missing variable is nothing.
pub(crate) fn value(format: &Format, stream: &Stream) -> Vec<u8> {
    let mut out = Vec::new();
    format.write_value(stream, &mut out);
    out
}

/// A template of APISIX's variables.
pub(crate) fn template(text: &str) -> Result<Format, String> {
    Format::apisix(text)
}
