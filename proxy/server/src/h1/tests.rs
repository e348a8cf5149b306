#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod request;

use sixfold_core::headers::Headers;
use sixfold_core::message::RequestHead;

use super::*;

/// A request head parsed in one piece.
fn request_with(opts: &H1Options, bytes: &[u8]) -> Result<(Parsed, RequestHead), H1Error> {
    let mut head = RequestHead::default();
    let parsed = HeadParser::new().request(bytes, &mut head, opts)?;
    Ok((parsed.expect("incomplete head"), head))
}

fn envoy() -> H1Options {
    H1Options::downstream(Profile::Envoy)
}

fn apisix() -> H1Options {
    H1Options::downstream(Profile::Apisix)
}

/// Every field as `name: value`.
fn lines(headers: &Headers) -> Vec<String> {
    headers
        .iter()
        .map(|(n, v)| format!("{}: {}", String::from_utf8_lossy(n), String::from_utf8_lossy(v)))
        .collect()
}
