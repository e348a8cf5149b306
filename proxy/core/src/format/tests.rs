//! Tables of formats and what they give, and a fuzz over random ones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::cluster::{Address, HostConfig, HostSet};
use crate::connection::{Certificate, Connection, TlsInfo};
use crate::flags::Flag;
use crate::message::{Scheme, Target, Version};
use crate::stream::Tried;
use bytes::Bytes;
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

fn connection() -> Connection {
    Connection {
        id: 7,
        start: Instant::now(),
        listener: "ingress".into(),
        filter_chain: "".into(),
        remote: "10.0.0.9:4001".parse().unwrap(),
        direct_remote: "10.0.0.1:4000".parse().unwrap(),
        local: "127.0.0.1:80".parse().unwrap(),
        direct_local: "[::1]:8080".parse().unwrap(),
        requested_server_name: None,
        tls: None,
    }
}

/// A request that an upstream answered.
fn stream() -> Stream {
    let mut s = Stream::new(Arc::new(connection()));
    s.random = 0x0123_4567_89ab_cdef;
    s.start_time = UNIX_EPOCH + Duration::from_millis(1_700_000_000_045);
    s.timing.request_complete = Some(s.timing.start + Duration::from_millis(2));
    s.timing.upstream_tx_begin = Some(s.timing.start + Duration::from_millis(3));
    s.timing.upstream_tx_end = Some(s.timing.start + Duration::from_millis(4));
    s.timing.upstream_rx_begin = Some(s.timing.start + Duration::from_millis(9));
    s.timing.downstream_tx_end = Some(s.timing.start + Duration::from_millis(12));
    s.request.authority = b"Oracle.test:81".to_vec();
    s.request.target = Target::new(b"/p/q?q=1&r=a%20b&flag");
    s.request.headers.push(b"X-A", b"abc");
    s.request.headers.push(b"Cookie", b"sid=42; theme=\"dark\"");
    s.response.status = 200;
    s.response.headers.push(b"x-r", b"r");
    s.remote = "1.2.3.4:5678".parse().unwrap();
    s.details = "via upstream".into();
    s.bytes.request_body = 5;
    s.bytes.response_body = 1234;
    let config = HostConfig::new(Address::Ip("127.0.0.1:9000".parse().unwrap()));
    let host = HostSet::new(vec![config], None).iter().next().unwrap().clone();
    let tried =
        |status, ms| Tried { host: host.clone(), status, connect_ms: None, header_ms: ms, response_ms: ms };
    s.upstream.tried = vec![tried(0, None), tried(200, Some(6))];
    s.upstream.host = Some(host);
    s.upstream.attempts = 2;
    s.upstream.version = Some(Version::Http2);
    s.metadata.push(("ns".into(), "k".into(), json!({"b": 1.0, "a": ["x", 2.5, null]})));
    s.metadata.push(("ns".into(), "s".into(), json!("text")));
    s
}

fn log(format: &str, stream: &Stream) -> String {
    let mut out = Vec::new();
    Format::envoy(format).unwrap().write_log(stream, &mut out);
    String::from_utf8(out).unwrap()
}

fn value(template: &str, stream: &Stream) -> String {
    let mut out = Vec::new();
    Format::apisix(template).unwrap().write_value(stream, &mut out);
    String::from_utf8(out).unwrap()
}
