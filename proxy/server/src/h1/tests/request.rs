use super::*;

use sixfold_core::message::{Method, Scheme, Version};

#[test]
fn a_plain_request_is_read_into_the_head() {
    let bytes = b"GET /a?b=c HTTP/1.1\r\nHost: example.com:80\r\nX-Mixed: 1\r\nAccept: */*\r\n\r\nrest";
    let (parsed, head) = request_with(&envoy(), bytes).unwrap();
    assert_eq!(parsed.consumed, bytes.len() - 4);
    assert_eq!(parsed.body, BodyLength::None);
    assert!(parsed.keep_alive && parsed.has_host && !parsed.upgrade && !parsed.expect_continue);
    assert_eq!(head.method, Method::GET);
    assert_eq!(head.version, Version::Http11);
    assert_eq!((head.target.path(), head.target.query()), (&b"/a"[..], Some(&b"b=c"[..])));
    assert_eq!(head.authority, b"example.com:80");
    assert_eq!(lines(&head.headers), ["x-mixed: 1", "accept: */*"]);
    let (_, head) = request_with(&apisix(), bytes).unwrap();
    assert_eq!(lines(&head.headers), ["X-Mixed: 1", "Accept: */*"]);
}

#[test]
fn an_absolute_target_replaces_host() {
    let (parsed, head) =
        request_with(&envoy(), b"GET https://u:p@foo.com:8443/p?q HTTP/1.1\r\nHost: bar\r\n\r\n").unwrap();
    assert_eq!(head.authority, b"foo.com:8443");
    assert_eq!(head.target.full(), b"/p?q");
    assert_eq!(parsed.scheme, Some(Scheme::Https));
}
