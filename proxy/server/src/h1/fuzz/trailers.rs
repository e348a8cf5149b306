//! The fuzz target of trailers: the same section over HTTP/1, in one piece and byte by byte, and over HTTP/2.

use http::{HeaderMap, HeaderName, HeaderValue};
use sixfold_core::headers::{Headers, Known, Underscores};

use super::super::options::{H1Options, Profile};
use super::super::{BodyEncoder, BodyLength, Decoder, H1Error};
use crate::wire::h2_headers;

/// A trailer section behind the last chunk. The first byte chooses the options.
///
/// The outcome must not depend on cuts. What is accepted keeps to the rules, is written and read as the same over
/// HTTP/1, and is the same over HTTP/2.
pub fn trailers(data: &[u8]) {
    let [choice, section @ ..] = data else { return };
    let opts = H1Options { enable_trailers: true, strict: false, ..super::options(*choice) };
    let bytes = [b"0\r\n", section, b"\r\n\r\n"].concat();
    let whole = decode(&bytes, bytes.len(), &opts);
    let cut = decode(&bytes, 1, &opts);
    assert_eq!(whole.as_ref().map(fields), cut.as_ref().map(fields), "the outcome depends on the cut");
    let Ok(trailers) = whole else { return };
    check_rules(&trailers, section, &opts);

    let mut out = Vec::new();
    assert_eq!(BodyEncoder::Chunked.finish(&mut out, Some(&trailers), &opts), Ok(()));
    let lax = H1Options { max_head_bytes: 1 << 20, max_line_bytes: None, ..opts.clone() };
    let again = decode(&out, out.len(), &lax);
    assert_eq!(again.as_ref().map(fields), Ok(fields(&trailers)), "written, they are read as others");
    over_http2(&trailers, &opts);
}

/// Reads the body with `step` bytes more at a time; an end that does not come leaves no trailers.
fn decode(bytes: &[u8], step: usize, opts: &H1Options) -> Result<Headers, H1Error> {
    let mut decoder = Decoder::new(BodyLength::Chunked);
    let (mut trailers, mut at, mut end) = (Headers::new(), 0, step.min(bytes.len()));
    loop {
        let decoded = decoder.decode(bytes.get(at..end).unwrap_or_default(), &mut trailers, opts)?;
        at += decoded.consumed;
        if decoded.end {
            return Ok(trailers);
        }
        if end == bytes.len() {
            return Err(H1Error::Truncated);
        }
        end = (end + step).min(bytes.len());
    }
}

fn fields(headers: &Headers) -> Vec<(Vec<u8>, Vec<u8>)> {
    headers.iter().map(|(n, v)| (n.to_ascii_lowercase(), v.to_vec())).collect()
}

fn check_rules(trailers: &Headers, section: &[u8], opts: &H1Options) {
    let rules = &opts.rules;
    assert!(trailers.len() <= rules.max_count, "more fields than allowed");
    // Places of lines that were joined are kept for more fields.
    let lines = section.iter().filter(|&&byte| byte == b'\n').count() + 1;
    let (wire, memory) = (section.len(), trailers.memory());
    let most = 2 * wire + 32 * (lines + 4) + sixfold_core::headers::FIRST;
    assert!(memory <= most, "{memory} bytes of memory for {wire} on the wire");
    for (known, name, value) in trailers.iter_known() {
        assert!(super::is_clean(name) && super::is_clean(value), "a line end inside a field");
        assert!(rules.underscores == Underscores::Allow || !name.contains(&b'_'));
        let Some(known) = known else { continue };
        assert!(!super::is_framing(name) && known != Known::TRAILER && known != Known::UPGRADE, "{known:?}");
        assert!(!rules.join || !known.is_inline() || trailers.get_all(known).count() == 1, "not joined");
    }
}

/// The fields as an HTTP/2 peer sends them give what they gave over HTTP/1, whatever order the names have.
fn over_http2(trailers: &Headers, opts: &H1Options) {
    let mut map = HeaderMap::new();
    for (name, value) in trailers.iter() {
        let name = HeaderName::from_bytes(name);
        let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) else { return };
        map.append(name, value);
    }
    let mut read = Headers::new();
    assert_eq!(h2_headers::read_trailers(&map, &opts.rules, &mut read), Ok(()));
    let sorted = |headers: &Headers| {
        let mut fields = fields(headers);
        // nginx keeps tabs around a value that came over HTTP/1; HTTP/2 knows no blanks there.
        fields.iter_mut().for_each(|(_, value)| *value = value.trim_ascii().to_vec());
        fields.sort();
        // Crumbs of a cookie come as one line.
        fields.retain(|(name, _)| name != b"cookie");
        fields
    };
    assert_eq!(sorted(&read), sorted(trailers), "HTTP/2 reads other trailers");
    let written = h2_headers::to_map(&read);
    let count = written.as_ref().map(HeaderMap::len);
    assert_eq!(count, Ok(read.len()), "HTTP/2 writes other trailers ({:?})", opts.profile == Profile::Envoy);
}
