//! `google.api.HttpBody`: bodies that are no JSON (source/extensions/filters/http/grpc_json_transcoder/http_body_utils.cc).

use super::Fault;
use super::encode::text;
use sixfold_xds_api::wire::{Fields, Value, put_delimited};
use std::collections::BTreeMap;
use std::convert::Infallible;

/// Full name of the message.
pub(super) const NAME: &str = "google.api.HttpBody";

/// What parameters of the query that bind nothing are packed as.
const UNKNOWN: &str =
    "type.googleapis.com/envoy.extensions.filters.http.grpc_json_transcoder.v3.UnknownQueryParams";

/// Parameters of the query that bind nothing, by name.
pub(super) type Unknown = BTreeMap<String, Vec<String>>;

/// Appends the message to one whose fields of these numbers lead to it.
pub(super) fn append(path: &[u32], content_type: &[u8], unknown: &Unknown, data: &[u8], out: &mut Vec<u8>) {
    if let Some((number, rest)) = path.split_first() {
        within(*number, out, |out| append(rest, content_type, unknown, data, out));
        return;
    }
    if !content_type.is_empty() {
        text(1, content_type, out);
    }
    if !unknown.is_empty() {
        within(3, out, |out| {
            text(1, UNKNOWN.as_bytes(), out);
            within(2, out, |out| {
                for (name, values) in unknown {
                    within(1, out, |out| {
                        text(1, name.as_bytes(), out);
                        within(2, out, |out| values.iter().for_each(|value| text(1, value.as_bytes(), out)));
                    });
                }
            });
        });
    }
    text(2, data, out);
}

fn within(number: u32, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let written: Result<(), Infallible> = put_delimited(number, out, |out| {
        write(out);
        Ok(())
    });
    match written {
        Ok(()) => {}
    }
}

/// Content type and data of the message that fields of these numbers lead to; empty where there is none.
pub(super) fn read<'m>(path: &[u32], message: &'m [u8]) -> Result<(&'m [u8], &'m [u8]), Fault> {
    let mut fields = Fields::of(message);
    let (mut content_type, mut data) = (&[][..], &[][..]);
    for (number, value) in fields.by_ref() {
        match (path.split_first(), number, value) {
            (Some((wanted, rest)), number, Value::Bytes(inner)) if *wanted == number => {
                (content_type, data) = read(rest, inner)?;
            }
            (None, 1, Value::Bytes(text)) => content_type = text,
            (None, 2, Value::Bytes(bytes)) => data = bytes,
            _ => {}
        }
    }
    if fields.rest().is_empty() { Ok((content_type, data)) } else { Err(Fault::internal("no HttpBody")) }
}
