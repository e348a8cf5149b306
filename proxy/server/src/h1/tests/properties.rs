//! What holds for random messages, and the fuzz targets on stable.

use proptest::prelude::*;

use super::super::fuzz;
use super::*;
use crate::stable;

const WORDS: &[&str] = &[
    "GET / HTTP/1.1\r\n",
    "POST /p HTTP/1.1\r\n",
    "CONNECT h:1 HTTP/1.1\r\n",
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.0",
    "http://h/",
    "Host: h\r\n",
    "Content-Length: 3\r\n",
    "Content-Length: ",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: ",
    "Connection: close\r\n",
    "Connection: upgrade\r\n",
    "Upgrade: x\r\n",
    "Upgrade: h2c\r\n",
    "Connection: te, x\r\n",
    "TE: trailers\r\n",
    "Expect: 100-continue\r\n",
    "\r\n\r\n",
    "\r\n",
    "\n",
    "\r",
    "\r\n ",
    "\t",
    ":",
    ",",
    "0\r\n\r\n",
    "3\r\nabc\r\n",
    "ffffffffffffffff\r\n",
    "3;x=y\r\n",
    "\0",
];

#[test]
fn fuzz_target_h1_codec() {
    stable::run("h1_codec", WORDS, fuzz::codec);
}

#[test]
fn fuzz_target_trailers() {
    stable::run("trailers", WORDS, fuzz::trailers);
}

#[test]
fn fuzz_target_h1_framing() {
    stable::run("h1_framing", WORDS, fuzz::framing);
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[A-Za-z][A-Za-z0-9-]{0,12}",
        Just("Cookie".to_owned()),
        Just("Accept".to_owned()),
        Just("X-Forwarded-For".to_owned()),
    ]
    .prop_filter("framing fields are added apart", |n| {
        !["connection", "host", "te", "upgrade", "expect", "trailer", "keep-alive", "date"]
            .contains(&n.to_lowercase().as_str())
            && !n.to_lowercase().starts_with("content-l")
            && !n.to_lowercase().starts_with("transfer-")
            && !n.to_lowercase().starts_with("proxy-")
    })
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..200)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Written by us, a request and its body are read by us as they were, wherever the bytes are cut.
    #[test]
    fn a_written_request_has_one_reading(
        fields in prop::collection::vec((name(), "[ -~\u{a0}-\u{ff}]{0,20}"), 0..8),
        path in "/[!-~]{0,30}",
        body in body(),
        chunked in any::<bool>(),
        cut in 0usize..400,
        apisix_profile in any::<bool>(),
    ) {
        let opts = if apisix_profile { apisix() } else { envoy() };
        let mut head = RequestHead {
            method: sixfold_core::message::Method::POST,
            authority: b"h.test".to_vec(),
            target: sixfold_core::message::Target::new(path.as_bytes()),
            ..Default::default()
        };
        for (name, value) in &fields {
            head.headers.push(name.as_bytes(), value.as_bytes());
        }
        if !chunked {
            head.headers.push(b"Content-Length", body.len().to_string().as_bytes());
        }
        let mut out = Vec::new();
        let mut encoder = encode_request(&mut out, &head, false, false, &opts).unwrap().body;
        for part in body.chunks(7) {
            encoder.data(&mut out, part).unwrap();
        }
        encoder.finish(&mut out, None, &opts).unwrap();

        let mut parser = HeadParser::new();
        let mut read = RequestHead::default();
        let early = parser.request(&out[..cut.min(out.len())], &mut read, &opts).unwrap();
        let parsed = match early {
            Some(parsed) => parsed,
            None => parser.request(&out, &mut read, &opts).unwrap().unwrap(),
        };
        prop_assert_eq!(read.target.full(), path.as_bytes());
        prop_assert_eq!(&read.authority, b"h.test");
        let (result, _) = decode_all(parsed.body, &out[parsed.consumed..], &opts);
        prop_assert_eq!(result, Ok(Some((body, out.len() - parsed.consumed))));
        // Values of one name stay in order, joined or not; empty ones are not joined.
        for (name, _) in &fields {
            let joined = |headers: &Headers| {
                let values: Vec<_> = headers
                    .iter()
                    .filter(|(n, _)| n.eq_ignore_ascii_case(name.as_bytes()))
                    .map(|(_, v)| text(v.trim_ascii()))
                    .filter(|v| !v.is_empty())
                    .collect();
                values.join(",")
            };
            prop_assert_eq!(joined(&read.headers), joined(&head.headers));
        }
    }

    /// Any cut of a chunked body gives the same data and the same end.
    #[test]
    fn a_chunked_body_does_not_depend_on_cuts(parts in prop::collection::vec(body(), 0..5), cuts in prop::collection::vec(1usize..20, 1..30)) {
        let mut bytes = Vec::new();
        let mut encoder = BodyEncoder::Chunked;
        for part in &parts {
            encoder.data(&mut bytes, part).unwrap();
        }
        encoder.finish(&mut bytes, None, &envoy()).unwrap();
        let len = bytes.len();
        bytes.extend_from_slice(b"next");
        let mut decoder = Decoder::new(BodyLength::Chunked);
        let (mut data, mut at, mut end) = (Vec::new(), 0, 0);
        let mut cuts = cuts.iter().cycle();
        loop {
            let step = decoder.decode(&bytes[at..end], &mut Headers::new(), &envoy()).unwrap();
            data.extend_from_slice(step.data);
            at += step.consumed;
            if step.end {
                break;
            }
            if step.data.is_empty() {
                end = bytes.len().min(end + cuts.next().unwrap());
            }
        }
        prop_assert_eq!(data, parts.concat());
        prop_assert_eq!(at, len);
    }
}

/// Every cut of a few whole connections gives what one piece gives; the assertion is in the target.
#[test]
fn every_cut_gives_the_same() {
    let streams: &[&str] = &[
        "GET /1 HTTP/1.1\r\nHost: h\r\nA: b\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\n\r\n",
        "\r\nPOST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n3\nabc\n0\nt: 1\n\nGET / HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhelloGET http://x/y HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\nA: 1\r\n 2\r\n\t3\r\n\r\nGARBAGE\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 204 No\r\n\r\nHTTP/1.0 200 OK\r\n\r\nuntil the end",
    ];
    for stream in streams {
        for choice in 0..=127u8 {
            for cut in 0..61u8 {
                let data = [&[choice, cut][..], stream.as_bytes()].concat();
                fuzz::codec(&data);
            }
        }
    }
}
