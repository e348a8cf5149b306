use super::*;

fn chunks(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, H1Error> {
    decode_all(BodyLength::Chunked, bytes, &envoy()).0
}

#[test]
fn chunked_bodies() {
    let good: &[(&[u8], &[u8])] = &[
        (b"0\r\n\r\n", b""),
        (b"3\r\nabc\r\n0\r\n\r\n", b"abc"),
        (b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", b"abc"),
        (b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
        (b"a\r\n0123456789\r\n000\r\n\r\n", b"0123456789"),
        (b"3;x=y\r\nabc\r\n0;z\r\n\r\n", b"abc"),
        (b"3 ; x=\"y\"\r\nabc\r\n0\r\n\r\n", b"abc"),
        (b"3  \r\nabc\r\n0\t\r\n\r\n", b"abc"),
        (b"2\r\n\r\n\r\n0\r\n\r\n", b"\r\n"),
        (b"0\r\na: 1\r\n\r\n", b""),
    ];
    for (bytes, data) in good {
        let mut more = bytes.to_vec();
        more.extend_from_slice(b"GET / HTTP/1.1\r\n");
        assert_eq!(chunks(&more), Ok(Some((data.to_vec(), bytes.len()))), "{:?}", text(bytes));
    }
    let strict = H1Options { strict: true, ..envoy() };
    for bytes in [&b"3\nabc\r\n"[..], b"3\r\nabc\n0\r\n", b"3 \r\nabc\r\n", b"0\r\n\n"] {
        assert!(decode_all(BodyLength::Chunked, bytes, &strict).0.is_err(), "{:?}", text(bytes));
    }
}

#[test]
fn bad_chunks_are_refused() {
    let bad: &[&[u8]] = &[
        b"zz\r\n\r\n",
        b"\r\n",
        b" 3\r\nabc",
        b"-1\r\n",
        b"+3\r\nabc",
        b"0x3\r\nabc",
        b"3x\r\nabc",
        b"3 x\r\nabc",
        b"3,3\r\nabc",
        b"3\rabc",
        b"3\r\r\nabc",
        b"3;a\rb\r\nabc",
        b"3;\0\r\nabc",
        b"3;\x7f\r\nabc",
        b"3\0\r\nabc",
        b"3\r\nabcd\r\n",
        // Bare LF: what another reader takes for a part of the extension or of the data.
        b"3\nabc\r\n0\r\n\r\n",
        b"3;x\nabc\r\n0\r\n\r\n",
        b"3 \nabc\r\n0\r\n\r\n",
        b"3\r\nabc\n0\r\n\r\n",
        b"0\n\r\n",
        b"3\r\nabc0\r\n\r\n",
        b"3\r\nabc\r0\r\n",
        b"3\r\nabc \r\n0\r\n",
        b"3\r\nabc\r\n\r\n0\r\n",
        b"0\r\nno colon\r\n\r\n",
        b"0\r\na b: 1\r\n\r\n",
        b"0\r\na: \0\r\n\r\n",
        b";\r\n",
        b"g\r\n",
        b"11111111111111111\r\n",
    ];
    for bytes in bad {
        assert!(chunks(bytes).is_err(), "{:?}", text(bytes));
    }
}

#[test]
fn unfinished_bodies_are_truncated() {
    for (length, bytes) in [
        (BodyLength::Chunked, &b"3\r\nab"[..]),
        (BodyLength::Chunked, b"3\r\nabc\r\n0\r\n"),
        (BodyLength::Chunked, b""),
        (BodyLength::Sized(3), b"ab"),
    ] {
        let mut decoder = Decoder::new(length);
        let step = decoder.decode(bytes, &mut Headers::new(), &envoy()).unwrap();
        assert!(!step.end && !decoder.is_done());
        assert_eq!(decoder.finish(), Err(H1Error::Truncated), "{length:?}");
    }
    let mut decoder = Decoder::new(BodyLength::UntilClose);
    assert_eq!(decoder.decode(b"abc", &mut Headers::new(), &envoy()).unwrap().data, b"abc");
    assert_eq!(decoder.finish(), Ok(()));
    assert!(decoder.is_done());
}

#[test]
fn a_sized_body_leaves_the_next_message() {
    let (result, _) = decode_all(BodyLength::Sized(3), b"abcGET", &envoy());
    assert_eq!(result, Ok(Some((b"abc".to_vec(), 3))));
    let mut decoder = Decoder::new(BodyLength::Sized(3));
    assert_eq!(decoder.remaining(), Some(3));
    let step = decoder.decode(b"ab", &mut Headers::new(), &envoy()).unwrap();
    assert_eq!((step.consumed, step.data, step.end), (2, &b"ab"[..], false));
    assert_eq!(decoder.remaining(), Some(1));
    assert!(Decoder::new(BodyLength::Sized(0)).is_done());
    assert!(Decoder::new(BodyLength::None).is_done());
}

#[test]
fn data_is_a_slice_of_the_buffer() {
    let buf = b"5\r\nhello\r\n0\r\n\r\n".to_vec();
    let mut decoder = Decoder::new(BodyLength::Chunked);
    let step = decoder.decode(&buf, &mut Headers::new(), &envoy()).unwrap();
    assert_eq!((step.consumed, step.data), (8, &b"hello"[..]));
    assert!(buf.as_ptr_range().contains(&step.data.as_ptr()));
}

#[test]
fn trailers_come_only_where_they_are_enabled() {
    let body =
        b"3\r\nabc\r\n0\r\nX-T: 1\r\nContent-Length: 9\r\nTransfer-Encoding: x\r\nHost: h\r\nx-u: 2\r\n\r\n";
    let on = H1Options { enable_trailers: true, ..envoy() };
    let (result, trailers) = decode_all(BodyLength::Chunked, body, &on);
    assert_eq!(result, Ok(Some((b"abc".to_vec(), body.len()))));
    assert_eq!(lines(&trailers), ["x-t: 1", "x-u: 2"]);
    let (result, trailers) = decode_all(BodyLength::Chunked, body, &envoy());
    assert_eq!(result, Ok(Some((b"abc".to_vec(), body.len()))));
    assert!(trailers.is_empty());
}
