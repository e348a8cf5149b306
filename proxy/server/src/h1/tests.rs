#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod body;
mod encode;
mod framing;
mod hop;
mod limits;
mod properties;
mod recorded;
mod request;
mod response;
mod with_hyper;

use sixfold_core::headers::{HeaderRules, Headers, Known, Underscores};
use sixfold_core::message::{RequestHead, ResponseHead};

use super::*;

/// A request head parsed in one piece.
fn request_with(opts: &H1Options, bytes: &[u8]) -> Result<(Parsed, RequestHead), H1Error> {
    let mut head = RequestHead::default();
    let parsed = HeadParser::new().request(bytes, &mut head, opts)?;
    Ok((parsed.expect("incomplete head"), head))
}

/// A response head parsed in one piece.
fn response_with(
    opts: &H1Options,
    kind: RequestKind,
    bytes: &[u8],
) -> Result<(ParsedResponse, ResponseHead), H1Error> {
    let mut head = ResponseHead::default();
    let parsed = HeadParser::new().response(bytes, &mut head, kind, opts)?;
    Ok((parsed.expect("incomplete head"), head))
}

/// Data and the bytes used up of a body that came to its end; `None` for one that did not.
type DecodedBody = Result<Option<(Vec<u8>, usize)>, H1Error>;

/// What a body decodes to, and its trailers.
fn decode_all(length: BodyLength, bytes: &[u8], opts: &H1Options) -> (DecodedBody, Headers) {
    let mut decoder = Decoder::new(length);
    let (mut trailers, mut data, mut at) = (Headers::new(), Vec::new(), 0);
    loop {
        match decoder.decode(&bytes[at..], &mut trailers, opts) {
            Err(error) => return (Err(error), trailers),
            Ok(step) => {
                data.extend_from_slice(step.data);
                at += step.consumed;
                if step.end {
                    return (Ok(Some((data, at))), trailers);
                }
                if step.data.is_empty() {
                    return (Ok(None), trailers);
                }
            }
        }
    }
}

fn envoy() -> H1Options {
    H1Options::downstream(Profile::Envoy)
}

/// Envoy's options with another bound on the number of fields.
fn counted(max_count: usize) -> H1Options {
    H1Options { rules: HeaderRules { max_count, ..HeaderRules::ENVOY }, ..envoy() }
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

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
